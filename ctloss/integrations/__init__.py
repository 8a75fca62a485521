"""The losses and the evaluation as other libraries take them: one module a library, imported only by those who have it."""
