"""The command line; a thin layer over the library, every command is a call that Python code can make too."""
