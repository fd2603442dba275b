import type { ResolvedConfig } from "../config/recipes.ts";
import { serveEngine } from "../run/engine-process.ts";

/** The hidden command `__engine`: the child process that computes. */
export function engine(): void {
  serveEngine<ResolvedConfig>(async (config, reporter, control) => {
    const { runTraining } = await import("../recipe/index.ts");
    await runTraining(config, reporter, control);
  });
}
