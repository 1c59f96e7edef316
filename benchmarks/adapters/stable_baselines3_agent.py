"""Stable-Baselines3 as its users run it: `learn` on monitored copies in one process, one thread."""

from __future__ import annotations

import torch
from agents import ENVIRONMENT, Watch, arguments, write
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


class Episodes(BaseCallback):
    """Tells the watch of every episode that ends."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def _on_training_start(self) -> None:
        self.watch.start()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.watch.add(info["episode"]["r"])
        return True


def main() -> None:
    """Learn and write what was measured."""
    options = arguments()
    torch.set_num_threads(1)
    if options.work == "ppo":
        agent = PPO(
            "MlpPolicy", make_vec_env(ENVIRONMENT, 8, options.seed), n_steps=32, batch_size=256, n_epochs=20, gamma=0.98,
            gae_lambda=0.8, learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.2 * left, ent_coef=0.0,
            max_grad_norm=0.5, policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}}, seed=options.seed, device="cpu",
        )  # fmt: skip
    else:
        agent = DQN(
            "MlpPolicy", make_vec_env(ENVIRONMENT, 1, options.seed), learning_rate=2.3e-3, batch_size=64,
            buffer_size=100_000, learning_starts=1000, gamma=0.99, target_update_interval=10, train_freq=256,
            gradient_steps=128, exploration_fraction=0.16, exploration_final_eps=0.04, max_grad_norm=10,
            policy_kwargs={"net_arch": [256, 256]}, seed=options.seed, device="cpu",
        )  # fmt: skip
    watch = Watch()
    agent.learn(options.actions, Episodes(watch))
    write(options.json, watch, agent.num_timesteps)


if __name__ == "__main__":
    main()
