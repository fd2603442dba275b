import { z } from "zod";
import { UsageError } from "../core/errors.ts";
import { LineProgram } from "./line-program.ts";
import { type BoundReward, defineReward } from "./registry.ts";
import { resultOf, rolloutRow } from "./rollout-row.ts";
import { RolloutFailure } from "./scoring.ts";

/** A program of the user's in any language. */
export const command = defineReward({
  name: "command",
  description:
    "a program that is started once and speaks JSON lines: a completion a line in ({id, step, prompt, completion, fields, …})," +
    " a line with the same id out ({id, reward, components?, details?}), in any order; reward null = cannot be scored",
  parameters: z.object({
    /** The program and its arguments; one text is split at spaces. */
    command: z.union([z.string().min(1), z.array(z.string()).min(1)]),
  }),
  bind({ command: given }): BoundReward {
    const argv = typeof given === "string" ? given.trim().split(/\s+/) : given;
    let program: LineProgram | undefined;
    return {
      async start() {
        const path = Bun.which(argv[0]!);
        if (path === null)
          throw new UsageError(`no program ${argv[0]}`, "reward command.command", "check the path");
        try {
          program = new LineProgram([path, ...argv.slice(1)]);
        } catch (error) {
          throw new UsageError(`${path} cannot be started (${(error as Error).message})`, "reward command");
        }
        return [`reward command: ${argv.join(" ")}`];
      },
      batch: (rollouts, { step }) =>
        Promise.all(
          rollouts.map(async (rollout, i) => {
            const answer = await program!.ask({ step, ...rolloutRow(rollout) }).catch((error: Error) => {
              throw new RolloutFailure(i, error.message);
            });
            return resultOf("command", answer);
          }),
        ),
      dispose: () => program?.close(),
    };
  },
});
