"""Conversation: messages of several turns in, the agent's next turn out."""

from distillery.task_types.overlap import TextOverlap


class Conversation(TextOverlap):
    """A turn is compared with what the agent wrote, by ROUGE-L.

    The metric that decides is compared row by row, and BLEU of one short turn means nothing. Of
    the other two ROUGE-L gives less for nothing: 751 turns of a service desk have 9 % of it in
    common with one another at random, but 13 % of chrF, so a share of the teacher's score says
    more.

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
