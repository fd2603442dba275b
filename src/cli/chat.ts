import { resolveOptions } from "../config/resolve.ts";
import { type ChatOptions, chatSchema } from "../config/schema-inference.ts";
import { UsageError } from "../core/errors.ts";
import { converse } from "./chat-terminal.ts";
import type { Command } from "./command.ts";
import { findModel, requireFolder, requireOutput } from "./files.ts";
import { flagsOf } from "./flags.ts";
import { talk } from "./talk.ts";

export const command: Command = {
  name: "chat",
  usage: "chat [MODEL]",
  maxArgs: 1,
  summary: "talk to a model in the terminal",
  examples: () => [
    "rlv chat",
    "rlv chat runs/mine/checkpoints/final --temperature 0",
    "rlv chat Qwen/Qwen3-0.6B,runs/mine/checkpoints/final --dtype bfloat16",
  ],
  notes: () => [
    "",
    "/help lists what can be typed beside messages; Ctrl-C stops a reply, and ends when there is none.",
    "Without a terminal every line of stdin is a message and stdout has the answers, without thoughts.",
  ],
  flags: () => flagsOf(chatSchema),
  async run({ args, flags }) {
    const given = new Map(flags);
    if (args[0] !== undefined) {
      if (given.has("model"))
        throw new UsageError(
          "the model is given twice",
          `${args[0]} and --model ${given.get("model")}`,
          "keep one of them",
        );
      given.set("model", args[0]);
    }
    const options = resolveOptions<ChatOptions>(chatSchema, given, "chat");
    if (options.save !== null) requireOutput(options.save, "save", options.model);
    const wanted = await wantedModels(options);
    const { ChatEngine } = await import("../run/chat/engine.ts");
    const { Conversation } = await import("../run/chat/conversation.ts");
    const engine = new ChatEngine(options);
    try {
      const open = (models: readonly Wanted[]) => {
        const keep = models.map(({ label }) => label);
        return models.map(({ label, ...folders }) => {
          const { info } = engine.open({ id: label, label, ...folders }, keep);
          for (const note of info.notes) talk(note);
          const size = `${info.architecture}, ${info.parameters} parameters`;
          talk(`${label} (${size}) on ${info.device}, context of ${info.context} tokens`);
          return engine.chat(label);
        });
      };
      const conversation = new Conversation(open(wanted), settingsOf(options));
      await converse(conversation, {
        save: options.save,
        history: options.history,
        open: async (name) => open(await wantedModels({ model: name, adapter: null }))[0]!,
      });
    } finally {
      engine.dispose();
    }
    return 0;
  },
};

interface Wanted {
  readonly label: string;
  readonly model: string;
  readonly adapter: string | null;
}

const list = (names: string) => names.split(",").map((name) => name.trim());

/** The folders of the models that --model and --adapter name, those on the hub by way of the cache. */
async function wantedModels({ model, adapter }: Pick<ChatOptions, "model" | "adapter">): Promise<Wanted[]> {
  const { resolveModel } = await import("../recipe/base.ts");
  const names = list(model);
  const adapters = adapter === null ? [null] : list(adapter);
  if (names.length > 1 && adapter !== null)
    throw new UsageError(
      "several models and an adapter",
      `--adapter ${adapter}`,
      "name adapter folders among the models: each brings the model that its adapter_config.json names",
    );
  const wanted: Wanted[] = [];
  for (const name of names) {
    const folder = await findModel(name, "model");
    for (const each of adapters) {
      if (each !== null) requireFolder(each, "adapter");
      wanted.push({ label: each ?? name, ...resolveModel(folder, each) });
    }
  }
  const twice = wanted.find(({ label }, i) => wanted.findIndex((w) => w.label === label) < i);
  if (twice) throw new UsageError("the same model is named twice", twice.label, "keep one of them");
  return wanted;
}

function settingsOf(options: ChatOptions) {
  const { temperature, top_p, top_k, min_p, max_new_tokens, seed, system } = options;
  const thinking = { auto: null, on: true, off: false }[options.thinking];
  return { temperature, top_p, top_k, min_p, max_new_tokens, seed, system, thinking };
}
