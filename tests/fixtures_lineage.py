"""Lineages of students: refs as the spine would hand them on."""

from schemas.refs import DatasetRef, FilteredSet, Lineage, ModelRef, PromptSet


def dataset_ref(stage: str, num_rows: int = 0, fingerprint: str = "d" * 64) -> DatasetRef:
    """Return a ref to rows that nobody has written."""
    uri = f"{stage}/{fingerprint}/a/rows"
    return DatasetRef(uri=uri, fingerprint=fingerprint, num_rows=num_rows, columns=())


def lineage_of(
    student: ModelRef,
    *,
    prompts: DatasetRef | None = None,
    baseline: ModelRef | None = None,
    exported: dict[str, ModelRef] | None = None,
) -> Lineage:
    """Return the lineage of ``student``; what is not given was never written."""
    nothing = dataset_ref("nothing")
    prompts = prompts or dataset_ref("validate_prompts")
    return Lineage(
        prompts=PromptSet(prompts=prompts, gold=nothing, quarantined=nothing),
        responses=dataset_ref("generate_responses"),
        filtered=FilteredSet(kept=nothing, rejected=nothing, num_responses=0, drop_reasons={}),
        training_set=dataset_ref("release_dataset"),
        soft_targets=None,
        baseline=baseline,
        student=student,
        exported=exported or {},
    )
