"""Conversation: messages of several turns in, the agent's next turn out."""

from distillery.task_types.overlap import TextOverlap


class Conversation(TextOverlap):
    """A turn is compared with what the agent wrote, by ROUGE-L.

    The metric that decides is paired row by row. BLEU of one short turn means nothing. chrF gives
    unrelated turns in one language 10 to 20 %, which would flatter every share of the teacher's;
    ROUGE-L gives them next to nothing, and takes off for what is said beyond the reference.

    >>> from schemas.task import TaskSpec
    >>> kind = Conversation(TaskSpec(name="t", type="conversation"))
    >>> kind.score("Thank you, goodbye!", ["Thank you and goodbye."])
    {'ROUGE-L': 0.8571428571428571}
    """

    fields = ()
    metrics = ("ROUGE-L",)

    def instructions(self) -> str:
        """Return the request for the next turn."""
        return "You are the agent in this conversation. Answer with your next turn alone."
