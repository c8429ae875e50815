"""Why a request got its answer, as text and picture."""
