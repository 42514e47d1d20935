import pytest

from latent_robust.latent.base.components import load_components

from .tiny import FAMILIES, make_pipeline, saved


@pytest.fixture(scope="session")
def pipelines():
    """(name) -> that family's tiny pipeline, shared by the session: look, do not change.

    For one of your own use `tiny.make_pipeline(name)`."""
    made = {}

    def pipeline(name: str):
        if name not in made:
            made[name] = make_pipeline(name)
        return made[name]

    return pipeline


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """(name) -> a diffusers folder with that family's tiny pipeline, shared: read only."""
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def folder(name: str):
        if name not in made:
            made[name] = saved(name, root)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def loaded(folders):
    """(name) -> Components of that family's folder, shared: look, do not change."""
    made = {}

    def components(name: str):
        if name not in made:
            made[name] = load_components(str(folders(name)))
        return made[name]

    return components


@pytest.fixture(params=FAMILIES)
def family_name(request) -> str:
    """Runs the test for each of the five families."""
    return request.param
