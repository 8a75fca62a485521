"""The losses under the names and arguments of other libraries; each module is imported by itself."""
