"""`samkv serve`: one engine behind OpenAI's protocol.

``schema.py`` says what may be asked, ``answers.py`` asks the engine, ``forms.py`` writes what it answers.
``app.py`` is the application, ``guard.py`` stands before it, and ``page.html`` is shown at ``/``.
"""
