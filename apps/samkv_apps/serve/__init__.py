"""`samkv serve`: an engine, or several, behind OpenAI's protocol.

``schema.py`` says what may be asked, ``backend.py`` asks the engine and ``ray.py`` several, ``answers.py`` counts what
they answer, ``forms.py`` writes it. ``app.py`` is the application, ``guard.py`` stands before it, and ``page.html`` is
shown at ``/``.
"""
