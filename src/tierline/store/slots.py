"""Slots that are open: pages that an owner may write, the keys they are for, and whose they are."""

from tierline.errors import UnknownSlot
from tierline.store.extents import Run, pages_for
from tierline.store.namespaces import Account
from tierline.store.objects import ObjectKey, Owner, Slot


class OpenSlot:
    """Pages that an owner may write; the key they are for and the account they are charged to, if these are known."""

    __slots__ = ("account", "key", "owner", "record", "runs", "slot")

    def __init__(
        self,
        slot: Slot,
        owner: Owner,
        key: ObjectKey | None,
        account: Account | None,
        runs: tuple[Run, ...],
        record: int,
    ) -> None:
        self.slot = slot
        self.owner = owner
        self.key = key
        self.account = account
        self.runs = runs
        self.record = record


class SlotTable:
    """All open slots, by number, by owner and by key.

    Invariant: a key is that of one slot at most; ``pages`` is the sum over all slots.

    Parameters
    ----------
    last
        Number below that of every slot that will be opened.
    """

    def __init__(self, last: int) -> None:
        self._last = last
        self._slots: dict[int, OpenSlot] = {}
        self._of_owner: dict[Owner, set[int]] = {}
        self._writing: dict[ObjectKey, int] = {}
        self.pages = 0

    def __len__(self) -> int:
        return len(self._slots)

    def is_writing(self, key: ObjectKey) -> bool:
        """Whether a slot is for this key."""
        return key in self._writing

    def next_id(self) -> int:
        """Return a number that no slot has had."""
        self._last += 1
        return self._last

    def open(self, opened: OpenSlot) -> None:
        """Add a slot."""
        self._slots[opened.slot.id] = opened
        self._of_owner.setdefault(opened.owner, set()).add(opened.slot.id)
        self.pages += pages_for(opened.slot.size)
        if opened.key is not None:
            self._writing[opened.key] = opened.slot.id

    def get(self, slot_id: int, owner: Owner) -> OpenSlot:
        """Return an open slot of this owner. Raises ``UnknownSlot``."""
        opened = self._slots.get(slot_id)
        if opened is None or opened.owner != owner:
            raise UnknownSlot(f"no slot {slot_id}: committed or aborted before, or another connection's")
        return opened

    def of_owner(self, owner: Owner) -> list[int]:
        """Return the numbers of an owner's slots."""
        return list(self._of_owner.get(owner, ()))

    def close(self, opened: OpenSlot) -> None:
        """Take a slot out."""
        del self._slots[opened.slot.id]
        of_owner = self._of_owner[opened.owner]
        of_owner.remove(opened.slot.id)
        if not of_owner:
            del self._of_owner[opened.owner]
        if opened.key is not None:
            del self._writing[opened.key]
        self.pages -= pages_for(opened.slot.size)
