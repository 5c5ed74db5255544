"""The command line. ``main.py`` finds the commands, ``store.py`` is `samkv store`."""
