"""What of a partition a group has settled. Plain bookkeeping, no client.

Kafka keeps one number for a group and partition. Handlers finish in any order, so AMB commits the first offset that is
not settled, and beside it, as the commit's metadata, which of the later ones are not: after a crash exactly those come
again. Other tools see an ordinary committed offset.
"""

from __future__ import annotations

__all__ = ["Progress"]

#: Kafka refuses more than 4096 bytes of metadata unless told otherwise.
_LIMIT = 4000
_MARK = "amb1:"


class Progress:
    """One partition, from the last commit on."""

    def __init__(self, committed: int, metadata: str) -> None:
        #: The offset after the last that was read.
        self.next = max(committed, 0)
        self._until, self._gaps = _decode(self.next, metadata)
        # In the order of their offsets, since that is how they are read.
        self._waiting: dict[int, None] = {}

    def take(self, offset: int) -> bool:
        """Note that a record was read. False: it was settled before."""
        if offset < self.next:
            return False
        self.next = offset + 1
        if offset < self._until and offset not in self._gaps:
            return False
        self._waiting[offset] = None
        return True

    def settle(self, offset: int) -> None:
        """Note that a record is done."""
        self._waiting.pop(offset, None)

    def left(self, begin: int, end: int) -> int:
        """As committed: how many of the records from `begin` to before `end` are not settled."""
        gaps = sum(gap >= begin for gap in self._gaps)
        return gaps + max(0, end - max(begin, self.next, self._until))

    def commit(self) -> tuple[int, str]:
        """The offset to commit, and its metadata."""
        end = max(self.next, self._until)
        # What was not read again yet is as it was.
        unread = sorted(gap for gap in self._gaps if gap >= self.next)
        waiting = [*self._waiting, *unread]
        if not waiting:
            return end, ""
        return waiting[0], _encode(waiting, end)


def _encode(waiting: list[int], end: int) -> str:
    """The distances between what waits, and where what is known ends."""
    words, size, before = list[str](), len(_MARK), waiting[0]
    for offset in waiting[1:]:
        word = f"{offset - before:x}"
        size += len(word) + 1
        if size > _LIMIT:
            # What does not fit counts as not read: it would come again after a crash.
            end = offset
            break
        words.append(word)
        before = offset
    return f"{_MARK}{end - waiting[0]:x}:{','.join(words)}"


def _decode(offset: int, metadata: str) -> tuple[int, set[int]]:
    """Where what is known ends, and which offsets before that are not settled."""
    if not metadata.startswith(_MARK):
        return offset, set()
    try:
        length, _, words = metadata[len(_MARK) :].partition(":")
        gaps, at = {offset}, offset
        for word in words.split(",") if words else ():
            at += int(word, 16)
            gaps.add(at)
        return offset + int(length, 16), gaps
    except ValueError:
        return offset, set()
