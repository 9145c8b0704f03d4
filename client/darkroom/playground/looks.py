"""The few rules of CSS that Streamlit's theme cannot say; colours stay those of the theme."""

import streamlit as st

_RULES = """
<style>
.block-container { padding: 1.4rem 1.5rem 4rem; max-width: 1500px; }
.st-key-title h3 { padding: 0 0.8rem 0.75rem 0; }
[data-testid="stImageContainer"] img { border-radius: 0.6rem; }
[class*="st-key-card-"] button { min-height: 2rem; padding: 0.1rem 0.45rem; }
[class*="st-key-card-"] button[kind="tertiary"] { padding: 0.1rem 0.2rem; }
[class*="st-key-card-"] button p { font-size: 0.82rem; }
:is([class*="st-key-card-"], .st-key-ideas-found) [data-testid="stCaptionContainer"] { margin: 0; }
:is([class*="st-key-card-"], .st-key-ideas-found) [data-testid="stCaptionContainer"] p {
  margin: 0; line-height: 1.35;
}
.st-key-ideas-found button { min-height: 0; padding: 0; text-align: left; }
.st-key-form-seed [data-testid="stNumberInputStepDown"],
.st-key-form-seed [data-testid="stNumberInputStepUp"] { display: none; }

/* The form beside the results; on a phone the newest follow the button that makes them. */
.st-key-generate-grid {
  display: grid;
  grid-template:
    "ask newest" auto "set newest" auto "set earlier" 1fr / minmax(0, 5fr) minmax(0, 7fr);
  gap: 1rem 3.5rem;
}
.st-key-generate-grid > div:has(> .st-key-generate-ask) { grid-area: ask; }
.st-key-generate-grid > div:has(> .st-key-generate-set) { grid-area: set; }
.st-key-generate-grid > div:has(> .st-key-generate-newest) { grid-area: newest; }
.st-key-generate-grid > div:has(> .st-key-generate-earlier) { grid-area: earlier; }

@media (max-width: 640px) {
  .block-container { padding: 0.9rem 0.9rem 3rem; }
  div:has(> .st-key-title) { display: none; }
  .st-key-generate-grid {
    grid-template: "ask" auto "newest" auto "set" auto "earlier" auto / minmax(0, 1fr);
  }
}
</style>
"""


def apply() -> None:
    """Adds the rules to the page."""
    st.html(_RULES)
