"""What to do about a check of the audit that does not pass, a line for each check."""

from hetpure.evaluation.audit import (
    ATTACK_DRAWS,
    BLACK_BOX,
    CONVERGENCE,
    DRAWS,
    DW_BOX,
    EIGHT_BIT,
    NULL_CHECK,
    OTHER_IDS,
    RADIUS,
    REFERENCE,
    STEPS,
    TRANSFER,
    WHOLE,
)
from hetpure.evaluation.sameness import AGAIN, COMPANY, MODE, WHO

ADVICE = {
    "gradient": "Find what makes the gradient zero or not finite; attack this row without it.",
    "gradient check": "Take an exact gradient policy; find what detaches or quantises the image.",
    WHO: "Let the purifier use random numbers only: it must not see stream, draw or sample id.",
    AGAIN: "Remove what the defence remembers from one call to the next.",
    COMPANY: "Remove what depends on the other images of a batch, as batch statistics.",
    MODE: "Remove what asks whether a gradient is taken; evaluation mode must be the only one.",
    REFERENCE: "The main attack is too weak: take PGD or APGD with more steps and draws.",
    STEPS: "Raise the attack's steps until twice as many change nothing.",
    DRAWS: "Raise eot_samples until twice as many change nothing.",
    RADIUS: "Suspect the gradient: a larger ball must help the attacker. Run hetpure gradcheck.",
    WHOLE: "Suspect the gradient: with any image allowed the attack must win. Add attacks.",
    BLACK_BOX: "Suspect masked gradients: count this attack too, as one of model.attacks.",
    TRANSFER: "Suspect masked gradients: add an attack on the classifier alone to model.attacks.",
    EIGHT_BIT: "Count the attack on images that are rounded to 8 bits, if attackers submit files.",
    DW_BOX: "Report accuracy with known noise too: attacks with known: [forward, reverse].",
    ATTACK_DRAWS: "Find why the defence is another one on the attacker's draws.",
    OTHER_IDS: "Find what of the defence knows whose image it gets.",
    NULL_CHECK: "Raise report_draws and selection_draws: the counting alone moves accuracy.",
    CONVERGENCE: "Raise the attack's steps: it was still gaining at its end.",
    "EOT draws": "Raise eot_samples: the gradient is mostly noise.",
    "saved images": "Do not use these images: delete the named blocks and run again.",
    "budget": "Raise model.audit.purifications, so that these checks get room.",
}
UNDECIDED = "Take more images (data.limit, model.audit.images, model.audit.purifications)."


def advice(name: str, verdict: str) -> str:
    """What to do about a check with that verdict; nothing where it passes."""
    if verdict == "PASS":
        return ""
    if verdict == "undecided" and name != "budget":
        return UNDECIDED
    return ADVICE.get(name, "Read the finding; this version has no advice for it.")
