"""From which seeds the package's single environment starts where a stream's environments are."""


def layout_seeds(envs):
    """Those of the layouts in which the environments of a GridEngine are."""
    return [envs.pools[envs.k].seed_of(number) for number in envs.board.layout.tolist()]


def emulator_seeds(envs):
    """Those of an AtariEngine right after a reset; ``None``: the single environment is reset with none."""
    game = envs.game
    return [None if game.actions.length(i) else segment.seed for i, segment in enumerate(game.segments)]
