"""What is decided before any kernel runs: tiles and formats, which blocks in what order, and how memory is spent."""
