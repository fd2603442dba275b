import { resolveOptions } from "../config/resolve.ts";
import { type DownloadOptions, downloadSchema } from "../config/schema-download.ts";
import { UsageError } from "../core/errors.ts";
import { downloadFile, downloadSnapshot } from "../io/hub/download.ts";
import { matcher, repoOf } from "../io/hub/repo.ts";
import { type Command, JSON_FLAG, printJson } from "./command.ts";
import { hubContext } from "./files.ts";
import { flagsOf } from "./flags.ts";
import { talk } from "./talk.ts";

export const command: Command = {
  name: "download",
  usage: "download REPO [FILE]",
  maxArgs: 2,
  summary: "fetch a model or a dataset from the hub into its cache, and print where it is",
  examples: () => [
    "rlv download Qwen/Qwen3-0.6B",
    "rlv download Anthropic/hh-rlhf --repo_type dataset --include 'helpful-base/*,harmless-base/*'",
    "rlv download Qwen/Qwen3-0.6B config.json",
  ],
  notes: () => [
    "",
    "The cache is the one of Python's huggingface_hub. A download that was cut off goes on where it ended, and",
    "bytes are checked against the hash that the hub announced. HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_CACHE count.",
  ],
  flags: () => [...flagsOf(downloadSchema), JSON_FLAG],
  async run({ args, flags, json }) {
    const options = resolveOptions<DownloadOptions>(downloadSchema, flags, "download");
    const [name, file] = args;
    if (name === undefined)
      throw new UsageError("no repository given", "rlv download", "name one, such as Qwen/Qwen3-0.6B");
    if (file !== undefined && options.include !== null)
      throw new UsageError("a file and --include exclude each other", "rlv download", "keep one of them");
    const repo = repoOf(name, options.repo_type, options.revision);
    const context = hubContext(talk);
    const include = options.include === null ? () => true : matcher(options.include.split(","));
    const path =
      file === undefined
        ? await downloadSnapshot(context, repo, include)
        : await downloadFile(context, repo, file);
    if (json) printJson({ repo: name, revision: options.revision, path });
    else process.stdout.write(`${path}\n`);
    return 0;
  },
};
