import { STANDALONE, VERSION } from "../core/version.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";

export const command: Command = {
  name: "version",
  usage: "version",
  maxArgs: 0,
  summary: "print the version",
  examples: () => ["rlv version", "rlv version --json"],
  flags: () => [JSON_FLAG],
  async run({ json }) {
    if (json)
      printJson({
        version: VERSION,
        bun: Bun.version,
        platform: process.platform,
        arch: process.arch,
        standalone: STANDALONE,
      });
    else process.stdout.write(`rlv ${VERSION}\n`);
    return 0;
  },
};
