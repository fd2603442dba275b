import { didYouMean } from "../config/suggest.ts";
import { UsageError } from "../core/errors.ts";
import type { Command } from "./command.ts";
import { completionScript, SHELLS } from "./completion-scripts.ts";

export const command: Command = {
  name: "completions",
  usage: "completions SHELL",
  maxArgs: 1,
  completes: { words: SHELLS },
  summary: "print what completes commands and flags in bash, zsh or fish",
  examples: () => [
    'eval "$(rlv completions bash)"     in ~/.bashrc',
    'eval "$(rlv completions zsh)"      in ~/.zshrc, after compinit',
    "rlv completions fish | source      in ~/.config/fish/config.fish",
  ],
  flags: () => [],
  async run({ args }) {
    const asked = args[0];
    const shell = SHELLS.find((name) => name === asked);
    if (shell === undefined)
      throw new UsageError(
        asked === undefined ? "no shell given" : `unknown shell ${JSON.stringify(asked)}`,
        "rlv completions",
        asked === undefined
          ? `one of ${SHELLS.join(", ")}`
          : didYouMean(asked, SHELLS, `one of ${SHELLS.join(", ")}`),
      );
    process.stdout.write(completionScript(shell));
    return 0;
  },
};
