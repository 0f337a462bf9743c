"""Labels of single channels: which must be removed together, and which cannot be removed.

Every index of every dimension of every tensor has a label. Labels that must agree are united. A label may be a
*pair* of others, as where a dimension of heads x width is flat: such an index goes where either of the two goes.
"""

from __future__ import annotations

import numpy as np

# A dimension that the network's inputs set (batch, height, width): it never changes, and needs no explanation.
FIXED = 0
# A dimension that forward sets from a constant of its own: channels that meet it cannot change, which is reported.
MADE = 1

NOT_FROZEN, BY_NATURE = 0, 1  # reasons from 2 on are entries of `reasons`
CHANNELS, BLOCKS, WITHIN = 0, 1, 2


class Labels:
    """Union-find over labels, with pairs and with reasons why a label is frozen.

    Attributes:
        reasons: by number minus 2, a reason and the place in the source that caused it.
    """

    def __init__(self) -> None:
        self._parent = np.arange(1024, dtype=np.int64)
        self._frozen = np.zeros(1024, dtype=np.int64)
        self._role = np.zeros(1024, dtype=np.int8)
        self._count = 2
        self._parts: dict[int, tuple[int, int]] = {}
        self._pairs: dict[tuple[int, int], int] = {}
        self.reasons: list[tuple[str, str]] = []

    def fresh(self, count: int, role: int = CHANNELS) -> np.ndarray:
        """New labels `(count,)`."""
        while self._count + count > len(self._parent):
            size = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(size, 2 * size)])
            self._frozen = np.concatenate([self._frozen, np.zeros(size, dtype=np.int64)])
            self._role = np.concatenate([self._role, np.zeros(size, dtype=np.int8)])
        labels = np.arange(self._count, self._count + count)
        self._role[labels] = role
        self._count += count
        return labels

    def find(self, labels: np.ndarray) -> np.ndarray:
        """The representatives of labels."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[labels] = roots
        return roots

    def unite(self, first: np.ndarray, second: np.ndarray, reason: int) -> None:
        """These labels agree, one by one. What meets a fixed size is frozen: by nature, or for the reason."""
        first, second = np.broadcast_arrays(first, second)
        pairs = np.stack([self.find(first.ravel()), self.find(second.ravel())], axis=1)
        pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
        for one, other in pairs.tolist():
            self._unite(one, other, reason)

    def freeze(self, labels: np.ndarray, reason: int) -> None:
        """These labels are never removed."""
        if not len(labels):
            return
        for label in np.unique(self.find(np.asarray(labels).ravel())).tolist():
            self._freeze(label, reason)

    def reason(self, text: str, where: str) -> int:
        """The number of a reason."""
        self.reasons.append((text, where))
        return len(self.reasons) + 1

    def frozen(self, labels: np.ndarray) -> np.ndarray:
        """By label, why it is frozen."""
        reasons = self._frozen[self.find(labels)]
        return np.where(labels <= MADE, BY_NATURE, reasons)

    def role(self, labels: np.ndarray) -> np.ndarray:
        """By label: channels, blocks, or within blocks."""
        return self._role[self.find(labels)]

    def are_blocks(self, labels: np.ndarray) -> bool | None:
        """Whether labels are of blocks or of places within blocks; None where they are of plain channels."""
        role = int(self.role(labels).max(initial=CHANNELS))
        return None if role == CHANNELS else role == BLOCKS

    def is_pair(self, labels: np.ndarray) -> np.ndarray:
        """By label, whether it stands for several."""
        return np.isin(self.find(labels), list(self._parts))

    def atoms(self, label: int) -> frozenset[int]:
        """The plain labels that a label stands for; none for fixed sizes."""
        label = int(self.find(np.array([label]))[0])
        if label <= MADE:
            return frozenset()
        if label not in self._parts:
            return frozenset([label])
        first, second = self._parts[label]
        return self.atoms(first) | self.atoms(second)

    def pair(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Labels that go where either one goes."""
        first, second = self.find(first), self.find(second)
        # What never goes leaves the decision to the other one.
        stays, other_stays = self.frozen(first) > 0, self.frozen(second) > 0
        result = np.where(stays, np.where(other_stays, np.minimum(first, second), second), first)
        for place in np.flatnonzero(~stays & ~other_stays & (first != second)).tolist():
            key = (int(first[place]), int(second[place]))
            label = self._pairs.get(key)
            if label is None:
                label = self._pairs[key] = int(self.fresh(1)[0])
                self._parts[label] = key
            result[place] = label
        return result

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            label = int(self._parent[label])
        return label

    def _unite(self, one: int, other: int, reason: int) -> None:
        one, other = self._root(one), self._root(other)
        if one == other:
            return
        if one > other:
            one, other = other, one
        if one <= MADE:
            if other > MADE:
                self._freeze(other, BY_NATURE if one == FIXED else reason)
            return
        if other in self._parts and one not in self._parts:
            one, other = other, one
        if one in self._parts:
            if other in self._parts:
                self._agree(self._parts[one], self._parts.pop(other), reason)
            elif other in self.atoms(one):
                # What one part decides for the whole pair is only safe if all parts agree.
                atoms = self.atoms(one)
                del self._parts[one]
                for atom in atoms:
                    self._unite(atom, other, reason)
            one, other = self._root(one), self._root(other)
            if one == other:
                return
        self._parent[other] = one
        self._role[one] = max(self._role[one], self._role[other])
        frozen = [int(value) for value in (self._frozen[one], self._frozen[other]) if value]
        if frozen:
            self._freeze(one, min(frozen))

    def _agree(self, these: tuple[int, int], those: tuple[int, int], reason: int) -> None:
        """Makes two pairs equal, part by part: sufficient, and the only way where their parts vary freely."""
        (first, second), (third, fourth) = (tuple(map(self._root, parts)) for parts in (these, those))
        if first == fourth or second == third:
            third, fourth = fourth, third
        self._unite(first, third, reason)
        self._unite(second, fourth, reason)

    def _freeze(self, label: int, reason: int) -> None:
        label = self._root(label)
        if label <= MADE:
            return
        known = int(self._frozen[label])
        if known and known <= reason:
            return
        self._frozen[label] = reason
        for part in self._parts.get(label, ()):
            self._freeze(part, reason)
