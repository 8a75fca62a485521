"""One batch over several processes: our losses with ``group=`` next to those that other libraries gather for."""
