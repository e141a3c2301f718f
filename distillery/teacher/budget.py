"""The budget: what was spent, what is being spent, and whether another request fits in."""

import threading

from schemas.budget import BudgetSpec, PriceSpec

_CHARS_PER_TOKEN = 4.0
_MEMORY = 0.05  # weight of the newest request in the running means


class Budget:
    """Spending under hard caps, shared by all chunks of a stage. Safe to use from several threads.

    A request is let in only when what was spent, what those in flight will cost by experience,
    and its own expected cost stay below every cap. So a cap is passed by no more than the error
    of that estimate over the requests in flight.

    >>> budget = Budget(BudgetSpec(max_tokens=100), None, num_tokens=60, cost=0.0)
    >>> budget.enter(prompt_chars=80, max_new_tokens=20)
    True
    >>> budget.enter(prompt_chars=80, max_new_tokens=20)  # 60 + 40 in flight
    False
    >>> budget.leave(20, 4)
    >>> budget.num_tokens
    84
    """

    def __init__(
        self,
        spec: BudgetSpec,
        price: PriceSpec | None,
        *,
        num_tokens: int,
        cost: float,
        mean_tokens: tuple[float, float] | None = None,
    ) -> None:
        """Start from what was spent before for the same purpose.

        Args:
            spec: The caps.
            price: What tokens cost.
            num_tokens: Tokens spent before.
            cost: Money spent before.
            mean_tokens: Prompt and completion tokens of a request by experience. None: nothing is
                known, so the first request is expected to use all that it may.
        """
        self._spec, self._price = spec, price
        self.num_tokens, self.cost = num_tokens, cost
        self._others = (0, 0.0)
        self._in_flight = 0
        self._mean = mean_tokens
        self._lock = threading.Lock()

    @property
    def is_capped(self) -> bool:
        """Return whether there is any cap."""
        return self._spec.max_cost is not None or self._spec.max_tokens is not None

    @property
    def num_in_flight(self) -> int:
        """Return how many requests are let in and not yet billed."""
        return self._in_flight

    def expected(self, prompt_chars: int, max_new_tokens: int) -> tuple[float, float]:
        """Return the tokens that a request is expected to read and write, by experience."""
        if self._mean is None:
            return prompt_chars / _CHARS_PER_TOKEN, float(max_new_tokens)
        return max(prompt_chars / _CHARS_PER_TOKEN, self._mean[0]), self._mean[1]

    def enter(self, *, prompt_chars: int, max_new_tokens: int) -> bool:
        """Return whether one more request fits in; if so, it is in flight from now on."""
        with self._lock:
            if self.is_capped and not self._fits(prompt_chars, max_new_tokens):
                return False
            self._in_flight += 1
            return True

    def readmit(self) -> None:
        """Note a request in flight that an earlier run has sent."""
        with self._lock:
            self._in_flight += 1

    def leave(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Note that a request is in flight no more, and what it was billed for."""
        with self._lock:
            self._in_flight -= 1
            self.num_tokens += prompt_tokens + completion_tokens
            if self._price is not None:
                self.cost += self._price.cost(prompt_tokens, completion_tokens)
            if prompt_tokens + completion_tokens:
                old = self._mean or (float(prompt_tokens), float(completion_tokens))
                self._mean = (
                    old[0] + _MEMORY * (prompt_tokens - old[0]),
                    old[1] + _MEMORY * (completion_tokens - old[1]),
                )

    def note_others(self, *, num_tokens: int, cost: float) -> None:
        """Note what other processes have spent for the same purpose since the start."""
        with self._lock:
            more_tokens = max(0, num_tokens - self._others[0])
            more_cost = max(0.0, cost - self._others[1])
            self._others = (self._others[0] + more_tokens, self._others[1] + more_cost)
            self.num_tokens, self.cost = self.num_tokens + more_tokens, self.cost + more_cost

    def sentence(self) -> str:
        """Return which cap keeps further requests out, and what was spent."""
        spec, said = self._spec, []
        if spec.max_cost is not None and self._price is not None:
            currency = self._price.currency
            said.append(f"{self.cost:.4g} of teacher.budget.max_cost={spec.max_cost:g} {currency}")
        if spec.max_tokens is not None:
            said.append(f"{self.num_tokens:,} of teacher.budget.max_tokens={spec.max_tokens:,}")
        return " and ".join(said)

    def _fits(self, prompt_chars: int, max_new_tokens: int) -> bool:
        own = self.expected(prompt_chars, max_new_tokens)
        others = self._mean or own
        prompt, completion = (own[i] + self._in_flight * others[i] for i in (0, 1))
        spec = self._spec
        if spec.max_tokens is not None and self.num_tokens + prompt + completion > spec.max_tokens:
            return False
        if spec.max_cost is None or self._price is None:
            return True
        return self.cost + self._price.cost(prompt, completion) <= spec.max_cost
