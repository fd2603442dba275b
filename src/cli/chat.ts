import { resolveOptions } from "../config/resolve.ts";
import { type ChatOptions, chatSchema } from "../config/schema-inference.ts";
import { UsageError } from "../core/errors.ts";
import { RUN_ROOTS } from "../report/runs.ts";
import { programArgv } from "../run/engine-process.ts";
import { engineOf, settingsOf, type Wanted, wantedModels } from "./chat-models.ts";
import { converse } from "./chat-terminal.ts";
import type { Command } from "./command.ts";
import { requireOutput } from "./files.ts";
import { flagsOf } from "./flags.ts";
import { talk } from "./talk.ts";

export const command: Command = {
  name: "chat",
  usage: "chat [MODEL]",
  maxArgs: 1,
  completes: { files: true },
  summary: "talk to models in the terminal, or on a page (--web)",
  examples: () => [
    "rlv chat",
    "rlv chat runs/mine/checkpoints/final --temperature 0",
    "rlv chat --web --autoload --model runs/mine/checkpoints/final",
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
    if (options.web) return onPage(options, given);
    const misplaced = ONLY_WEB.find((flag) => given.has(flag));
    if (misplaced !== undefined)
      throw new UsageError(`--${misplaced} is for the page`, undefined, "add --web, or leave it out");
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
        open: async (name) =>
          open(await wantedModels({ model: name, adapter: null, adapter_scales: null }))[0]!,
      });
    } finally {
      engine.dispose();
    }
    return 0;
  },
};

const ONLY_WEB = ["autoload", "port", "host", "no_open"];
const ONLY_TERMINAL = ["save", "history"];

/** `--web`: the page of rlv serve, which begins with these models. */
async function onPage(options: ChatOptions, given: ReadonlyMap<string, string>): Promise<number> {
  const misplaced = ONLY_TERMINAL.find((flag) => given.has(flag));
  if (misplaced !== undefined)
    throw new UsageError(
      `--${misplaced} is for the terminal`,
      undefined,
      "leave out --web, or export on the page",
    );
  const models = await wantedModels(options);
  const { host, port, no_open, autoload } = options;
  const { showPage } = await import("./serve.ts");
  const chat = { engine: engineOf(options), models, autoload, defaults: settingsOf(options) };
  const program = programArgv(Bun.main);
  await showPage({ host, port, folders: RUN_ROOTS, program, chat }, { no_open, json: false, view: "#/chat" });
  return 0;
}
