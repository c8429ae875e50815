"""The gate of a new model: checks all outputs that become features on held-out rows.

The gate has four parts. Three judge the outputs on the training's validation rows: generated POIs (`next_poi_gate`),
click probabilities (`click_gate`), and user and POI vectors (`embedding_gate`). The fourth judges what they are for:
what they give a ranking model (`lift_gate`). A model becomes champion only if no part objects.
"""

from dataclasses import asdict, dataclass

import pyarrow as pa

from models.evaluation.generator_choice import GeneratorChoice
from models.evaluation.release_split import EvaluationRows
from models.lift.held_out import HeldOut
from models.registry.champions import Champions
from models.registry.click_gate import ClickVerdict, judge_clicks
from models.registry.embedding_gate import EmbeddingVerdict, judge_embeddings
from models.registry.lift_gate import LiftVerdict, judge_lift
from models.registry.next_poi_gate import GateVerdict, judge_next_poi
from models.serving.bundle import ModelBundle

FEATURES_OF_STAGES = {
    "sft_embedding": "user and POI vectors",
    "sft_ranking": "scores",
}


@dataclass(frozen=True)
class Verdict:
    """The verdicts of all parts of the gate; None = the bundle has no such output.

    Attributes:
        next_poi: verdict on generated POIs.
        clicks: verdict on click probabilities.
        embeddings: verdict on user and POI vectors.
        lift: verdict on what the features give a ranking model.
        missing: reasons for outputs that a champion has and the bundle lacks.
    """

    next_poi: GateVerdict
    clicks: ClickVerdict | None = None
    embeddings: EmbeddingVerdict | None = None
    lift: LiftVerdict | None = None
    missing: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons against promotion; empty = promoted."""
        parts = (self.next_poi, self.clicks, self.embeddings, self.lift)
        judged = (reason for part in parts if part is not None for reason in part.reasons)
        return (*self.missing, *judged)

    def tags(self) -> dict[str, object]:
        """Returns the verdict as tags of the registered version."""
        tags: dict[str, object] = {f"gate_{key}": value for key, value in asdict(self.next_poi).items()}
        tags["gate_reasons"] = self.reasons
        if self.clicks is not None:
            tags |= {
                "gate_click_auc": self.clicks.auc,
                "gate_calibration_error": self.clicks.calibration_error,
            }
        if self.embeddings is not None:
            tags |= {"gate_embedding_mrr": self.embeddings.mrr, "gate_embedding_auc": self.embeddings.auc}
        if self.lift is not None and not self.lift.missing:
            tags |= {"gate_lift": self.lift.lift, "gate_ranker_auc": self.lift.auc}
        return {key: value for key, value in tags.items() if value is not None}


def judge_bundle(
    rows: EvaluationRows | None,
    samples: pa.Table | None,
    challenger: ModelBundle,
    champions: Champions,
    *,
    choice: GeneratorChoice | None = None,
    held_out: HeldOut | str = "",
) -> Verdict:
    """Judges a new bundle on held-out rows.

    Args:
        rows: requests of the validation split; None = there are none.
        samples: `ranking_samples` of the validation split; None = there are none.
        challenger: the new bundle.
        champions: the current and former champions of the same index version.
        choice: generator choice on the same rows; its ranks of the challenger are reused.
        held_out: requests for the lift; a text = why there are none, empty = it is not asked for.
    """
    return Verdict(
        judge_next_poi(rows, challenger, champions, choice=choice),
        judge_clicks(samples, challenger, champions),
        judge_embeddings(rows, samples, challenger, champions),
        judge_lift(held_out, challenger, champions) if held_out else None,
        describe_missing(challenger, champions),
    )


def describe_missing(challenger: ModelBundle, champions: Champions) -> tuple[str, ...]:
    """Returns a reason for each output that a champion has and the challenger lacks: its table would end.

    A part of the gate has nothing to say about an output that is not there.
    """
    return tuple(
        f"stages: the model has no {stage}, which champion {name} has, so {what} would no longer be made; if that is "
        "meant, set features.model to this version"
        for stage, what in FEATURES_OF_STAGES.items()
        for name in [next((name for name, own in champions.items() if stage in own.stage_names), None)]
        if name is not None and stage not in challenger.stage_names
    )
