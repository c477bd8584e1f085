"""A page in the browser, and an HTTP endpoint beside it: upload a frame, ask, cut, download.

    uploads.py    limits and checks of what is uploaded
    store.py      what is kept between two clicks, bounded
    files.py      the private folder of uploads and of the endpoint's answers
    desk.py       what the buttons and the endpoint do; knows no web framework
    drawing.py    results as PNG, npz and previews
    fragments.py  results as HTML; style.py their looks
    layout.py     the page itself (Gradio)
    guard.py      what is refused
    server.py     routes, start and end (FastAPI, uvicorn)

``layout`` and ``server`` need Gradio (``pins.PAGE``): import them after
``check_versions(also=["gradio"])``.
"""
