import { Bug } from "../core/errors.ts";
import type { Reporter, RunControl } from "../run/reporter.ts";
import type { ArithmeticSettings } from "./arithmetic.ts";
import type { HhGrpoSettings } from "./hh-grpo.ts";
import type { HhRmSettings } from "./hh-rm.ts";
import type { SftSettings } from "./sft.ts";
import type { StoriesSettings } from "./stories.ts";

export type RecipeSettings =
  | ArithmeticSettings
  | SftSettings
  | HhRmSettings
  | HhGrpoSettings
  | StoriesSettings;

/** Runs a job to its end; each recipe is loaded when it is asked for. */
export async function runTraining(
  settings: RecipeSettings,
  reporter: Reporter,
  control: RunControl,
): Promise<void> {
  switch (settings.recipe) {
    case "arithmetic":
      return (await import("./arithmetic.ts")).trainArithmetic(settings, reporter, control);
    case "sft":
      return (await import("./sft.ts")).trainSft(settings, reporter, control);
    case "hh-rm":
      return (await import("./hh-rm.ts")).trainHhRm(settings, reporter, control);
    case "hh-grpo":
      return (await import("./hh-grpo.ts")).trainHhGrpo(settings, reporter, control);
    case "stories":
      return (await import("./stories.ts")).trainStories(settings, reporter, control);
    default:
      throw new Bug(`no recipe ${(settings as { recipe: string }).recipe}`);
  }
}
