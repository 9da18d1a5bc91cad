"""From which seeds the package's single environment starts where a stream's environments are."""


def layout_seeds(envs):
    """Those of the layouts that each of some GridEnvs plays."""
    return [envs.banks[envs.k].seed_of(number) for number in envs.layout.tolist()]


def emulator_seeds(envs):
    """Those of ArcadeEnvs right after a reset; ``None``: the single environment is reset with none."""
    log = envs.game.log
    return [life[2] if life and life[0] == log.rows else None for life in log.starts]
