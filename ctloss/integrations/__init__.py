"""The losses and the evaluation as other libraries take them: a module a library, imported only where it is used."""
