"""The page itself: fields, buttons, and what happens on a click (Gradio)."""

from __future__ import annotations

import gradio as gr

from ...errors import UserError
from ...html import Html, join
from . import drawing, fragments
from .desk import Desk

_TITLE = "Vessel segmentation"
_STEP = 0.001


def build_page(
    desk: Desk, *, text: str, queue: int, title: str = "Vessel segmentation"
) -> gr.Blocks:
    """Lays out the page.

    Args:
        desk: what is behind the buttons.
        text: what is asked at first.
        queue: how many may wait for the model; more are refused.
    """
    with gr.Blocks(title=_TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"## {_TITLE}")
        token = gr.State(None, delete_callback=desk.forget)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.File(label="Frame", height=130, elem_id="upload")
                examples = _thumbnails(desk)
                question = gr.Textbox(text, label="What to look for", lines=2, elem_id="text")
                run = gr.Button("Run", variant="primary", elem_id="run")
                threshold = gr.Slider(
                    _STEP, 1, desk.inferencer.threshold, step=_STEP, label="Threshold",
                    elem_id="threshold",
                )  # fmt: skip
                gr.HTML(fragments.threshold_source(desk.inferencer.threshold_text), elem_id="why")
            with gr.Column(scale=3, min_width=300):
                stage = gr.HTML(fragments.empty(), elem_id="stage")

        clicks = _Clicks(desk)
        # Not behind those who wait for the model.
        quiet = dict(api_visibility="private", show_progress="hidden", queue=False)
        upload.upload(clicks.take, [upload, token], [token, stage, upload], **quiet)
        if examples is not None:
            examples.select(clicks.choose, token, [token, stage], **quiet)
        model = dict(concurrency_id="model", concurrency_limit=1)
        for start in (run.click, question.submit):
            start(
                clicks.run, [token, question, threshold], [token, stage],
                api_visibility="private", show_progress_on=stage, **model,
            )  # fmt: skip
        threshold.change(clicks.cut, [token, threshold], stage, trigger_mode="always_last", **quiet)
        _endpoint(desk, text, model)
    return page.queue(max_size=queue, api_open=False)


def _thumbnails(desk: Desk) -> gr.HTML | None:
    """Examples as buttons. Not Gradio's gallery, which keeps files and has a height of its own."""
    if not desk.examples:
        return None
    return gr.HTML(
        fragments.thumbnails(desk.thumbnails()),
        js_on_load="element.addEventListener('click', (event) => {"
        " const button = event.target.closest('button');"
        " if (button) trigger('select', {index: Number(button.dataset.index)}); });",
        elem_id="examples",
    )


def _endpoint(desk: Desk, text: str, model: dict[str, object]) -> None:
    """The endpoint /predict, whose fields are not on the page."""

    def predict(
        image: str, text: str = text, threshold: float | None = None
    ) -> tuple[str, str, str, float, dict[str, object]]:
        """Predicts one frame.

        Returns mask (PNG of 0 and 255), probability (16-bit PNG), answer, the threshold that the
        mask was cut at, and numbers.
        """
        try:
            result = desk.predict(image, text, threshold)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        names = (drawing.MASK, drawing.PROBABILITY)
        paths = desk.folder.put_files((name, drawing.FILES[name](result)) for name in names)
        height, width = result.mask.shape
        numbers = {
            "width": width,
            "height": height,
            "mask_pixels": int(result.mask.sum()),
            "mask_share": float(result.mask.mean()),
            "mean_probability": float(result.probability.mean(dtype="float64")),
            "max_probability": float(result.probability.max(initial=0.0)),
            "seg_emitted": bool(result.seg_emitted[0]),
            "seconds": dict(result.timing),
        }
        return str(paths[0]), str(paths[1]), result.answers[0], result.threshold, numbers

    gr.Button(visible=False).click(
        predict,
        [gr.File(label="image", visible=False), gr.Textbox(text, visible=False),
         gr.Number(None, visible=False)],
        [gr.File(label="mask", visible=False), gr.File(label="probability", visible=False),
         gr.Textbox(label="answer", visible=False), gr.Number(label="threshold", visible=False),
         gr.JSON(label="numbers", visible=False)],
        api_name="predict", **model,
    )  # fmt: skip


class _Clicks:
    """Each returns new values of components; an error is shown on the page."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def take(self, path: str | None, old: str | None) -> tuple[object, object, None]:
        """A frame was uploaded. The field is emptied: its file is gone, and its name with it."""
        if path is None:
            return gr.skip(), gr.skip(), None
        try:
            return *self._frame(self._desk.take(path, old)), None
        except UserError as error:
            self._desk.forget(old)
            return None, fragments.message(error), None

    def choose(self, chosen: gr.EventData, old: str | None) -> tuple[str | None, Html]:
        """An example was chosen."""
        try:
            return self._frame(self._desk.take_example(int(chosen.index), old))
        except UserError as error:
            return None, fragments.message(error)

    def run(self, token: str | None, text: str, threshold: float) -> tuple[str | None, Html]:
        """The model is asked."""
        try:
            new = self._desk.run(token, text, threshold)
            return new, fragments.result(new, self._desk.cut(new, threshold))
        except UserError as error:
            return token, self._with_message(token, error)

    def cut(self, token: str | None, threshold: float) -> object:
        """The slider was moved; before a run there is nothing to cut."""
        if token is None or not self._desk.is_result(token):
            return gr.skip()
        try:
            return fragments.result(token, self._desk.cut(token, threshold))
        except UserError as error:
            return fragments.message(error)

    def _frame(self, token: str) -> tuple[str, Html]:
        return token, fragments.frame(token, self._desk.image(token).shape)

    def _with_message(self, token: str | None, error: UserError) -> Html:
        """The message, above the frame where that is still there."""
        said = [fragments.message(error)]
        if token is not None and self._desk.has(token):
            said.append(self._frame(token)[1])
        return join(said)
