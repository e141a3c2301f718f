import pytest
from pydantic import ValidationError

from distillery.storage.links import file_link
from schemas.execution import StoreSpec
from schemas.refs import ReportRef

REPORT = ReportRef(uri="compare_models/abc/1/re port", fingerprint="abc")


@pytest.mark.parametrize("address", ["https://files.example/ours", "https://files.example/ours/"])
def test_a_link_leads_below_the_address_that_browsers_reach(address: str) -> None:
    store = StoreSpec(root="s3://bucket/prefix", browse_url=address)
    assert file_link("Report", REPORT, "report.html", store) == (
        "[Report](https://files.example/ours/compare_models/abc/1/re%20port/report.html)"
    )


def test_without_an_address_the_place_is_named_and_nothing_is_linked() -> None:
    said = file_link("Report", REPORT, "report.html", StoreSpec(root="/data/store"))
    assert "`/data/store/compare_models/abc/1/re port/report.html` on the machine" in said
    assert "](" not in said and "Set `store.browse_url`" in said


@pytest.mark.parametrize(
    "address", ["file:///data/store", "/data/store", "http://", "files.example"]
)
def test_an_address_that_no_browser_elsewhere_opens_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="browse_url"):
        StoreSpec(browse_url=address)
