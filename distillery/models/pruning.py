"""A smaller model made of a larger one: some of its layers, and narrower feed-forward blocks."""

from schemas.errors import RecipeError
from schemas.student import PrunedStudent


def kept_layers(spec: PrunedStudent, num_layers: int) -> tuple[int, ...]:
    """Return the numbers of the layers that a student keeps of a model with ``num_layers``.

    Layer `i` of the student is layer `kept_layers(...)[i]` of the model. They are spread evenly,
    the first and the last among them, unless the recipe names them.

    Raises:
        RecipeError: The model has no such layer, or not so many.

    >>> kept_layers(PrunedStudent(model="teacher", num_layers=6), 18)
    (0, 3, 7, 10, 14, 17)
    """
    if spec.layers:
        if spec.layers[-1] >= num_layers:
            raise RecipeError(
                f"student.layers names layer {spec.layers[-1]}, but {spec.model!r} has "
                f"{num_layers} layers, numbered from 0. Name layers up to {num_layers - 1}."
            )
        return spec.layers
    kept = num_layers if spec.num_layers is None else spec.num_layers
    if kept > num_layers:
        raise RecipeError(
            f"student.num_layers={kept} is more than the {num_layers} layers of {spec.model!r}, "
            "which is pruned, not grown. Lower it."
        )
    steps = max(kept - 1, 1)
    return tuple((2 * place * (num_layers - 1) + steps) // (2 * steps) for place in range(kept))
