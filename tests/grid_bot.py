"""A player of MiniGrid that makes progress in all of its environments, and mistakes."""

import collections

from minigrid.core.actions import Actions
from minigrid.core.constants import DIR_TO_VEC

AROUND = [tuple(map(int, vector)) for vector in DIR_TO_VEC]


class Bot:
    """Plays the package's environment; goes from one random errand to the next, useful ones more often.

    An errand is a cell and what to do in front of it.
    """

    def __init__(self, env, rng, carelessness=0.1):
        self.env, self.rng, self.carelessness = env, rng, carelessness
        self.forget()

    def forget(self):
        self.path, self.errand = [], None

    def act(self):
        if self.rng.random() < self.carelessness:
            return int(self.rng.integers(self.env.action_space.n))
        if self.errand is None and not self.choose():
            return int(self.rng.integers(self.env.action_space.n))
        here = tuple(map(int, self.env.agent_pos))
        while self.path and self.path[0] == here:
            self.path.pop(0)
        cell, action = self.errand
        ahead = self.path[0] if self.path else cell
        direction = (ahead[0] - here[0], ahead[1] - here[1])
        if direction not in AROUND:  # a careless step has led astray
            self.forget()
            return Actions.done if self.env.action_space.n > Actions.done else Actions.left
        turn = (AROUND.index(direction) - self.env.agent_dir) % 4
        if turn:
            return Actions.left if turn == 3 else Actions.right
        if self.path:
            if not self.is_free(ahead):
                self.forget()
            return Actions.forward
        self.forget()
        return action

    def is_free(self, cell):
        thing = self.env.grid.get(*cell)
        return thing is None or (thing.can_overlap() and thing.type not in ("goal", "lava"))

    def choose(self):
        """Draw an errand from those that can be run, and the way there."""
        start = tuple(map(int, self.env.agent_pos))
        came_from, cells = {start: None}, collections.deque([start])
        errands, weights = [], []
        while cells:
            here = cells.popleft()
            for x, y in AROUND:
                cell = here[0] + x, here[1] + y
                if not (0 <= cell[0] < self.env.width and 0 <= cell[1] < self.env.height):
                    continue
                for action, weight in self.uses(cell):
                    errands.append((here, cell, action))
                    weights.append(weight)
                if self.is_free(cell) and cell not in came_from:
                    came_from[cell] = here
                    cells.append(cell)
        if not errands:
            return False
        total = sum(weights)
        chosen = self.rng.choice(len(errands), p=[weight / total for weight in weights])
        here, *self.errand = errands[chosen]
        while here != start:
            self.path.insert(0, here)
            here = came_from[here]
        return True

    def uses(self, cell):
        """What may be done in front of a cell, and how much one is inclined to."""
        env, thing, carrying = self.env, self.env.grid.get(*cell), self.env.carrying
        if cell in (at(env, "success_pos"), at(env, "failure_pos")):
            yield Actions.forward, 2
        if cell == at(env, "target_pos") and not hasattr(env, "move_type"):
            yield Actions.done, 2
        if thing is None:
            if carrying:
                near = at(env, "target_pos")
                close = near and max(abs(cell[0] - near[0]), abs(cell[1] - near[1])) <= 1
                yield Actions.drop, 5 if close else 0.05
        elif thing.type == "goal":
            yield Actions.forward, 5
        elif thing.type == "lava":
            yield Actions.forward, 0.1
        elif thing.type == "door":
            fits = carrying is not None and carrying.type == "key" and carrying.color == thing.color
            yield Actions.toggle, 20 if thing.is_locked and fits else 0.1 if thing.is_open else 3
        elif thing.can_pickup():
            if not carrying:
                yield Actions.pickup, 20 if thing is getattr(env, "obj", None) else 1
            if thing.type == "box" and thing is not getattr(env, "obj", None):
                yield Actions.toggle, 2
        elif thing.type == "wall":
            yield Actions.toggle, 0.002


def at(env, name):
    """Where something of an environment is, if it has it."""
    place = getattr(env, name, None)
    return None if place is None else tuple(map(int, place))
