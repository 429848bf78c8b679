"""How much of a run's work is left, from its journal: units, and the cells that want an answer."""

from collections.abc import Mapping, Sequence


class OpenUnits:
    """Units with the cells that still want an answer from them.

    Args:
        units: For each unit the seconds it is expected to take, and its cells.
    """

    def __init__(self, units: Mapping[str, tuple[float, Sequence[str]]] | None = None) -> None:
        self._cells: dict[str, dict[str, float]] = {}
        self._of_cell: dict[str, dict[str, None]] = {}
        self.work_seconds = 0.0
        for unit, (seconds, cells) in (units or {}).items():
            self._add(unit, dict.fromkeys(cells, seconds / max(1, len(cells))))
            self.work_seconds += seconds

    def count(self, cell: str) -> int:
        """Return how many units a cell waits for."""
        return len(self._of_cell.get(cell, ()))

    def close(self, unit: str, cell: str) -> float:
        """Strike out a cell of a unit and return the seconds that were left for it."""
        self._of_cell.get(cell, {}).pop(unit, None)
        return self._cells.get(unit, {}).pop(cell, 0.0)

    def drop(self, cell: str) -> float:
        """Strike out a cell from all its units and return the seconds that were left for it."""
        return sum(self.close(unit, cell) for unit in tuple(self._of_cell.get(cell, ())))

    def split(self, unit: str, halves: Sequence[str]) -> None:
        """Put two units in the place of one, the first with the first half of the open cells."""
        members = list(self._cells.get(unit, {}).items())
        middle = len(members) // 2
        for half, part in zip(halves, (members[:middle], members[middle:]), strict=True):
            self._add(half, dict(part))
        for cell, _ in members:
            self.close(unit, cell)

    def _add(self, unit: str, seconds: dict[str, float]) -> None:
        self._cells[unit] = seconds
        for cell in seconds:
            self._of_cell.setdefault(cell, {})[unit] = None
