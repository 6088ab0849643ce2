"""How many tokens to draft: as many as are likely to pay, and none where drafting does not.

It counts passes, not time, so that the same answers in a row take the same passes every time. One
drafted token costs `cost` passes, whether or not it is accepted, and an accepted one saves a pass;
a pass that checks any costs `once` more.
Answers may lose LOSS passes a token, FIRST passes before there is any token, and what they saved
before. Those of a server, or of a conversation, share one credit, so that drafting that never pays
is tried at the beginning of the first and then rarely, however short the answers are.
"""

from dataclasses import dataclass

LOSS = 0.01  # passes a token
FIRST = 0.95  # passes, at the start of the first answer
SAVINGS = 2.0  # passes, at most, that may be lost later because they were saved before
FADE = 0.8  # what a past pass counts for at each new one


@dataclass
class Credit:
    """What answers may still lose together, in passes."""

    passes: float = FIRST

    def add(self, passes: float) -> None:
        """Add what was saved, or take off what was lost."""
        self.passes = min(SAVINGS, self.passes + passes)


class Pace:
    """Counts of one answer: what was drafted and what of it was accepted."""

    def __init__(self, credit: Credit) -> None:
        # As if one of two drafted tokens had been accepted before.
        self._hits, self._trials = 1.0, 2.0
        self._credit = credit

    def take(self) -> None:
        """Count a token of the answer."""
        self._credit.add(LOSS)

    def learn(self, drafted: int, accepted: int, cost: float, once: float = 0.0) -> None:
        """Count a pass that checked drafts."""
        self._hits = FADE * self._hits + accepted
        self._trials = FADE * self._trials + accepted + (accepted < drafted)
        self._credit.add(accepted - once - cost * drafted)

    def count(self, most: int, cost: float, once: float = 0.0) -> int:
        """Return how many tokens to draft, at most `most`.

        It is the number that saves the most passes, if each drafted token is accepted as often as
        before, or one where none saves any; but no more than may be lost.
        """
        share = self._hits / self._trials
        best, count, saved, chance = 0.0, 0, -once, 1.0
        for k in range(1, most + 1):
            if once + cost * k > self._credit.passes:
                break
            chance *= share
            saved += chance - cost
            if k == 1 or saved > best:
                best, count = max(best, saved), k
        return count
