"""The paper's table in miniature: rows trained side by side from one base and evaluated in the same way."""
