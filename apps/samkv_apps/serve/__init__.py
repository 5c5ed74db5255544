"""`samkv serve`: one engine or several behind OpenAI's API.

``schema.py`` checks requests, ``backend.py`` calls one engine and ``ray.py`` several, ``answers.py`` counts answers,
``forms.py`` formats them. ``app.py`` is the application, ``guard.py`` its middleware, ``page.html`` the page at ``/``.
"""
