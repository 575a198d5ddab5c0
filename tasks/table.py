"""What `--task list` prints."""

from __future__ import annotations

from tasks import CHAINS, DEFAULT_CONFIG, TASKS, TOOLS


def task_table() -> str:
    """Every task and tool, and the settings it starts from."""
    rows = [("task", "class", "default config")]
    for table in (TASKS, TOOLS):
        rows += [(name, table.target(name), DEFAULT_CONFIG.get(name, "-")) for name in table.names()]
    rows += [(name, f"{first}+{second}", "-") for name, (first, second, _) in CHAINS.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name:{widths[0]}}  {target:{widths[1]}}  {config}" for name, target, config in rows)
