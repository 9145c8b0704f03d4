"""Filters that tests install as a package of their own would be."""

from pathlib import Path

from shared.core.model_catalog import ModelSpec


def install(folder: Path) -> Path:
    """Have the entry points of a package in the folder, which belongs into `PYTHONPATH`."""
    package = folder / "toy_filters-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-filters\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[darkroom.filters]\nobedient = toy_filters:Obedient\nbroken = toy_filters:Broken\n"
        "slow = toy_filters:Slow\n"
    )
    source = Path(__file__).with_name("toy_filters.py").read_text("utf-8")
    (folder / "toy_filters.py").write_text(source, "utf-8")
    return folder


def build_checker(folder: Path, *, threshold: float) -> ModelSpec:
    """A checkpoint's tiny safety checker, with random weights; it compares with the threshold."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    torch.nn.init.normal_(checker.concept_embeds)
    torch.nn.init.constant_(checker.concept_embeds_weights, threshold)
    checker.save_pretrained(folder / "safety_checker")
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(folder / "feature_extractor")
    return ModelSpec(name=folder.name, source=str(folder))
