"""Drafts of the next tokens from what prompt and answer have said before, and whether they pay. Knows ids and seconds only.

Prompt lookup (Saxena 2023): where the last tokens stood earlier in the text, what followed there is likely to follow
again; summaries, rewritten texts, code and JSON are full of it. A draft is verified in one run over several tokens, which
costs less than as many runs over one. What verifying is exact about is told in `engine.py`.

The law is that nobody pays for it. A prediction is made for every token, drafted or not, so that how often predictions hold
is known before a draft is ever paid for: by how long the match is (a text that has been copied for ten tokens goes on being
copied), for this answer. A draft is made where that and the measured seconds of runs promise more tokens a second than single
tokens give, and it is as long as promises most.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiasst.engine.costs import Costs

SIZES = (2, 4, 8, 16)
"""Tokens of a run that verifies a draft: the answer's last one and those of the draft. Even, because kernels for 4 and 8 bits
work on pairs of rows and round the odd one otherwise."""
LONGEST_DRAFT = SIZES[-1] - 1
NGRAMS = (4, 3, 2)
"""Last tokens that are looked for, most first."""
REACH = 16
"""Tokens of a match that count; a longer one promises nothing more."""
MARGIN = 1.1
"""A draft must promise this many times the speed of single tokens: promises are estimates."""

_KINDS = (0, 0, 0, 1, 2, *(3,) * 4, *(4,) * 7, 5)
"""Matches of equal worth, by their length: 2, 3, 4, 5-8, 9-15 and more."""
_AT_FIRST = (0.2, 0.35, 0.5, 0.75, 0.85, 0.95)
"""The share of predictions that hold, by kind, before this answer has told."""
_TRUST = 2.0
"""Predictions that the share at first counts for."""
_KEPT = 0.95
"""What the predictions so far count for when there is one more of their kind: the last twenty matter."""
_HOPELESS = 0.1
"""Below this share not even a free run over two tokens would pay."""


class Lookup:
    """The ids of one text, and where in it they stood before.

    `at` is the place of the id that is predicted next, where the last `matched` (2 and more, counted up to REACH) ids of the
    text stand before it as well as at its end. `matched` is 0 where nothing is predicted.
    """

    def __init__(self) -> None:
        self.at = self.matched = 0
        self._ids: list[int] = []
        self._behind: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in NGRAMS}
        """The place behind each n-gram, where it was seen last; not of the one at the end, behind which nothing stands yet."""

    def __len__(self) -> int:
        return len(self._ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Go on with these ids."""
        known, begin = self._ids, len(self._ids)
        goes_on = self.matched > 0 and len(ids) == 1 and known[self.at] == ids[0]
        known.extend(ids)
        for size, behind in self._behind.items():
            for place in range(max(begin, size), len(known)):
                behind[tuple(known[place - size : place])] = place
        self._predict(self.at + 1 if goes_on else 0, min(self.matched + 1, REACH) if goes_on else 0)

    def draft(self, count: int) -> list[int]:
        """What is predicted: the `count` ids from `at` on, which go round where they reach the end of the text."""
        ids, period = self._ids[self.at : self.at + count], len(self._ids) - self.at
        while len(ids) < count:
            ids.append(ids[-period])
        return ids

    def _predict(self, at: int, matched: int) -> None:
        """Stay with the match that goes on at `at`, or take a longer one that an n-gram leads to; of equal ones the newer."""
        self.at, self.matched = at, matched
        if matched > NGRAMS[0]:
            return
        known = self._ids
        for size in NGRAMS:
            place = self._behind[size].get(tuple(known[-size:]))
            if place is not None:
                length = self._match(place, size)
                if (length, place) > (matched, at):
                    self.at, self.matched = place, length
                return

    def _match(self, place: int, sure: int) -> int:
        """How many ids before `place` are those at the end, of which `sure` are known to be."""
        known, length = self._ids, sure
        while length < min(REACH, place) and known[place - 1 - length] == known[-1 - length]:
            length += 1
        return length


class Speculator:
    """Drafts for one answer; told what was really written, it knows what they are worth."""

    def __init__(self) -> None:
        self._lookup = Lookup()
        self._tried, self._held = [0.0] * len(_AT_FIRST), [0.0] * len(_AT_FIRST)
        self._shares = list(_AT_FIRST)

    @property
    def seen(self) -> int:
        """Tokens that it was told of."""
        return len(self._lookup)

    def observe(self, ids: Sequence[int]) -> None:
        """The text goes on with these ids; what was there at first is no answer, and tells nothing about predictions."""
        if not self.seen:
            self._lookup.extend(ids)
            return
        for token in ids:
            if self._lookup.matched:
                self._judge(_KINDS[self._lookup.matched], self._lookup.draft(1)[0] == token)
            self._lookup.extend((token,))

    def draft(self, costs: Costs, room: int) -> list[int]:
        """The next ids as predicted, at most `room`: as many as promise most, none where single tokens are faster."""
        matched, single = self._lookup.matched, costs.verify_seconds(1)
        if not matched or single is None or self._shares[_KINDS[matched]] < _HOPELESS:
            return []
        best, fastest = 0, MARGIN / single
        expected = self._expected(matched, min(room, LONGEST_DRAFT))
        for size in SIZES:
            seconds = costs.verify_seconds(size)
            if size > len(expected) or seconds is None:
                break
            if expected[size - 1] / seconds > fastest:
                best, fastest = size - 1, expected[size - 1] / seconds
        return self._lookup.draft(best)

    def _expected(self, matched: int, most: int) -> list[float]:
        """Tokens that runs over 1, 2, …, 1 + `most` tokens give on average: each token of a draft holds if all before it do."""
        chance = total = 1.0
        totals = [total]
        for length in range(matched, matched + most):
            chance *= self._shares[_KINDS[min(length, REACH)]]
            total += chance
            totals.append(total)
        return totals

    def _judge(self, kind: int, held: bool) -> None:
        self._tried[kind] = self._tried[kind] * _KEPT + 1
        self._held[kind] = self._held[kind] * _KEPT + held
        self._shares[kind] = (self._held[kind] + _TRUST * _AT_FIRST[kind]) / (self._tried[kind] + _TRUST)
