"""How the page looks; colours are those of Gradio's theme, light or dark."""

from __future__ import annotations

from .drawing import heat_gradient

STYLE = f"""
.gradio-container {{ width: 100%; max-width: 1500px !important; margin: 0 auto !important; }}
#stage .html-container, #examples .html-container, #why .html-container {{ padding: 0; }}
.v-thumbs {{ display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px; }}
.v-thumbs button {{ padding: 0; border: 2px solid transparent; border-radius: 6px; overflow: hidden;
  cursor: pointer; aspect-ratio: 1; background: #000; }}
.v-thumbs button:hover, .v-thumbs button:focus-visible {{ border-color: var(--color-accent); }}
.v-thumbs img {{ display: block; width: 100%; height: 100%; object-fit: cover; }}
.v-small-print {{ font-size: 13px; color: var(--body-text-color-subdued); margin: 0 0 4px;
  overflow-wrap: anywhere; }}
.v-panels {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px; }}
.v-panels figure {{ margin: 0; min-width: 0; }}
.v-panels figcaption {{ display: flex; align-items: center; justify-content: space-between;
  gap: 12px; padding: 2px; font-size: 14px; font-weight: 600; }}
.v-panels img {{ display: block; width: 100%; height: auto; border-radius: 6px; background: #000;
  outline: 1px solid var(--border-color-primary); }}
.v-panels img.v-small {{ image-rendering: pixelated; }}
.v-scale {{ flex: none; display: flex; align-items: center; gap: 6px; font-weight: 400; }}
.v-scale i {{ width: 72px; height: 10px; border-radius: 3px;
  background: linear-gradient(to right, {heat_gradient()}); }}
.v-numbers {{ display: flex; flex-wrap: wrap; gap: 10px; margin: 0 0 12px; }}
.v-numbers div {{ flex: 1 1 130px; padding: 8px 12px; border-radius: 8px;
  background: var(--background-fill-secondary); overflow-wrap: anywhere; }}
.v-numbers dt {{ font-size: 13px; color: var(--body-text-color-subdued); }}
.v-numbers dd {{ margin: 0; font-size: 16px; font-weight: 600; }}
.v-numbers small {{ font-weight: 400; font-size: 13px; }}
.v-downloads {{ display: flex; flex-wrap: wrap; gap: 8px; margin: 14px 0 4px; }}
.v-downloads a {{ padding: 8px 14px; border-radius: 8px; text-decoration: none; font-weight: 600;
  color: var(--button-secondary-text-color); background: var(--button-secondary-background-fill);
  border: 1px solid var(--border-color-primary); }}
.v-downloads a:hover {{ background: var(--button-secondary-background-fill-hover); }}
.v-message {{ padding: 12px 16px; border: 2px solid #c33; border-radius: 8px; margin: 0 0 12px;
  overflow-wrap: anywhere; }}
.v-message dt {{ font-size: 13px; color: var(--body-text-color-subdued); }}
.v-message dd {{ margin: 0 0 6px; }}
.v-note {{ padding: 8px 14px; border-left: 4px solid #d08700; margin: 0 0 12px; }}
.v-empty {{ display: grid; place-items: center; min-height: 260px; padding: 24px;
  text-align: center; border: 2px dashed var(--border-color-primary); border-radius: 8px;
  color: var(--body-text-color-subdued); }}
.v-one {{ max-width: 640px; }}
@media (max-width: 640px) {{ .v-panels {{ grid-template-columns: minmax(0, 1fr); }}
  .v-numbers div {{ flex-basis: 120px; }} .v-empty {{ min-height: 120px; }} }}
"""
