"""`wsol demo --serve`: a page in the browser to play with, on this machine alone and without the network."""

from __future__ import annotations

import html
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsol.engine.demo_photos import packaged_photos
from wsol.engine.find_objects import Finder
from wsol.engine.serve_options import ServeConfig
from wsol.errors import ConfigError, DataError, WsolError

_UPLOADS = "GRADIO_TEMP_DIR"
_WAITING = 16
_KEPT_SECONDS = 3600
_CSS = """
#times table, #times thead, #times tbody, #times tr, #times td, #times th { border: none; background: none; }
#times table { width: 100%; }
#times td, #times th { padding: 2px 8px; white-space: nowrap; }
#likeliest { padding-top: 30px; }
#likeliest h2 { display: none; }
.wsol-error { color: var(--error-text-color); font-weight: 600; }
"""


@contextmanager
def serve(config: ServeConfig) -> Iterator[str]:
    """Show the page while the context is open.

    Nothing leaves the machine: no analytics, no share link, no font or script from elsewhere. One photo is worked on
    at a time. Uploads and results lie in temporary folders; they are deleted within two hours, and at the end.

    Args:
        config: See `ServeConfig`.

    Yields:
        Address of the page.

    Raises:
        WsolError: When Gradio is not installed, the port is taken, or the model cannot be loaded.
    """
    config.validate()
    gradio = _gradio()
    with tempfile.TemporaryDirectory(prefix="wsol-", ignore_cleanup_errors=True) as folder, _uploads_in(folder):
        page = build_page(Finder(config), config, Path(folder))
        try:
            _, address, _ = page.launch(
                server_name=config.host,
                server_port=config.port,
                max_file_size=round(config.max_megabytes * 2**20),
                theme=_theme(gradio),
                css=_CSS,
                share=False,
                ssr_mode=False,
                footer_links=[],
                show_error=True,
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            where = f"{config.host}:{config.port or '7860 to 7959'}"
            raise ConfigError(
                "cannot listen here", where=where, hint="another --port, or a --host of this machine"
            ) from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def build_page(finder: Finder, config: ServeConfig, folder: Path) -> Any:
    """Lay out the page.

    Args:
        finder: Does the work.
        config: See `ServeConfig`.
        folder: Temporary folder that holds the uploads; what is found is written there, too.

    Returns:
        The `gradio.Blocks`.
    """
    gr = _gradio()

    def find(
        photo: dict[str, Any] | None, classes: Sequence[str], method: str, refiner: str, background: float
    ) -> list[Any]:
        out = folder / "found"
        shutil.rmtree(out, ignore_errors=True)  # Gradio has copied the files of the job before
        try:
            if photo is None:
                raise ConfigError("no photo yet", hint="drop one above, or take an example")
            if not Path(photo["path"]).resolve().is_relative_to(folder.resolve()):
                raise DataError("not a photo that was uploaded here")
            found = finder.find(
                Path(photo["path"]),
                classes=classes or (),
                method=method,
                refiner=refiner,
                background=background,
                out=out,
            )
        except WsolError as error:
            hint = f" ({error.hint})" if error.hint else ""  # where: a temporary path, or a flag that a page has not
            line = f'<p class="wsol-error" role="alert">{html.escape(error.what + hint)}</p>'
            off = gr.update(value=None, interactive=False)
            return [gr.update(value=line, visible=True), None, None, None, None, "", off, off]
        return [
            gr.update(visible=False),
            gr.update(value=found.maps, selected_index=0),
            found.mask,
            found.boxes,
            found.likeliest,
            _times(found.milliseconds),
            gr.update(value=str(found.mask_file), interactive=True),
            gr.update(value=str(found.coco_file), interactive=True),
        ]

    picture: Any = {"format": "png", "height": 340, "buttons": ["download", "fullscreen"]}
    keep = (_KEPT_SECONDS, _KEPT_SECONDS)
    with gr.Blocks(title="wsol", fill_width=True, analytics_enabled=False, delete_cache=keep) as page:
        gr.Markdown(f"# Where is it?\nA classifier that never saw a box ({finder.model}) shows where its classes are.")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                photo = gr.Image(
                    label="Photo", type="filepath", sources=["upload", "clipboard"], height=300, elem_id="photo"
                )
                examples = _examples()
                if examples:
                    gr.Examples(examples, photo, label="Examples")
                classes = gr.Dropdown(
                    list(finder.names.names),
                    value=list(finder.names.names) if config.classes else [],
                    label="Classes",
                    info="Pick or type: a name, its last word (cat), or a class id. Empty: the likeliest class.",
                    multiselect=True,
                    allow_custom_value=True,
                    elem_id="classes",
                )
                with gr.Row():
                    method = gr.Dropdown(finder.methods, value=_first(finder.methods, "gradcam"), label="Map method")
                    refiner = gr.Dropdown(finder.refiners, value=_first(finder.refiners, "densecrf"), label="Refiner")
                background = gr.Slider(
                    0.05, 0.95, 0.35, step=0.05, label="Background", info="Higher: smaller masks. Lower: larger ones."
                )
                button = gr.Button("Find", variant="primary", elem_id="find")
            with gr.Column(scale=2, min_width=320):
                message = gr.HTML(visible=False, elem_id="message")
                with gr.Row():
                    label = "Score maps: warm colours speak for the class"
                    maps = gr.Gallery(label=label, preview=True, object_fit="contain", elem_id="maps", **picture)
                    mask = gr.Image(label="Mask", interactive=False, elem_id="mask", **picture)
                with gr.Row():
                    boxes = gr.Image(label="Boxes", interactive=False, elem_id="boxes", **picture)
                    with gr.Column():
                        likeliest = gr.Label(label="What the classifier says", elem_id="likeliest")
                        times = gr.Markdown(elem_id="times")
                with gr.Row():
                    png = gr.DownloadButton("Mask (PNG)", interactive=False, elem_id="png")
                    coco = gr.DownloadButton("Objects (COCO JSON)", interactive=False, elem_id="coco")
        # Without Gradio's own reading of the inputs, which would open the file before its size is known.
        button.click(
            find,
            [photo, classes, method, refiner, background],
            [message, maps, mask, boxes, likeliest, times, png, coco],
            preprocess=False,
            concurrency_limit=1,
        )
    return page.queue(max_size=_WAITING)


@contextmanager
def _uploads_in(folder: str) -> Iterator[None]:
    """Have Gradio keep uploads here: it asks the environment at every one."""
    before = os.environ.get(_UPLOADS)
    os.environ[_UPLOADS] = folder
    try:
        yield
    finally:
        del os.environ[_UPLOADS]
        if before is not None:
            os.environ[_UPLOADS] = before


def _theme(gradio: Any) -> Any:
    """Fonts of the system, so that none is fetched; labels that do not outshine the pictures."""
    theme = gradio.themes.Default(
        primary_hue="orange", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    quiet = {"background_fill": "*block_background_fill", "text_color": "*body_text_color", "text_weight": "500"}
    return theme.set(**{f"block_{kind}_{name}": value for kind in ("label", "title") for name, value in quiet.items()})


def _times(milliseconds: dict[str, float]) -> str:
    rows = [*milliseconds.items(), ("**together**", sum(milliseconds.values()))]
    return "\n".join(["| step | ms |", "|---|--:|", *(f"| {name} | {value:.0f} |" for name, value in rows)])


def _examples() -> list[str]:
    try:
        return [str(path) for path in packaged_photos()]
    except DataError:
        return []


def _first(names: Sequence[str], wanted: str) -> str:
    return wanted if wanted in names else names[0]


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ConfigError("Gradio is not installed", hint="pip install 'wsol[serve]'") from error
    return gradio
