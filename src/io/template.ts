import { UsageError } from "../core/errors.ts";
import { parseTemplate, renderProgram, type TemplateProgram } from "./template-interpreter.ts";
import { strip } from "./template-values.ts";

/** One turn of a chat; further fields (tool_calls, reasoning_content, …) are the template's to read. */
export interface ChatMessage {
  readonly role: string;
  readonly content?: unknown;
  readonly [field: string]: unknown;
}

/** A tokenizer, or a template by itself. */
export type TemplateSource =
  | {
      readonly chatTemplates: ReadonlyMap<string, string>;
      readonly specialTokens: Readonly<Record<string, string>>;
      readonly folder?: string;
    }
  | { readonly template: string; readonly specialTokens?: Readonly<Record<string, string | null>> };

export interface RenderOptions {
  /** Open the assistant's turn at the end. Default false. */
  readonly addGenerationPrompt?: boolean;
  /** End inside the last message, for the model to go on with it. Default false. */
  readonly continueFinalMessage?: boolean;
  readonly tools?: readonly unknown[] | null;
  readonly documents?: readonly unknown[] | null;
  /** The clock behind the templates' strftime_now. */
  readonly now?: () => Date;
  /** Everything else is a variable of the template (enable_thinking, …). */
  readonly [variable: string]: unknown;
}

const NO_TEMPLATE =
  "put a chat_template.jinja into the model's folder, or give prompts as text instead of messages";

/** Whether a model can be sent messages. */
export function hasChatTemplate(tokenizer: { readonly chatTemplates: ReadonlyMap<string, string> }): boolean {
  return tokenizer.chatTemplates.size > 0;
}

/**
 * The text of a chat by the model's template, as transformers' apply_chat_template(tokenize=False) gives
 * it: fields that are null are dropped, reasoning goes under all its names, special tokens that the
 * tokenizer lacks are not defined.
 */
export function renderChat(
  source: TemplateSource,
  messages: readonly ChatMessage[],
  options: RenderOptions = {},
): string {
  const { addGenerationPrompt = false, continueFinalMessage = false, now, ...variables } = options;
  const where = "folder" in source ? source.folder : undefined;
  const template = pickTemplate(source, variables.tools ?? null, where);
  if (messages.length === 0) {
    throw new UsageError("no messages to render", where, "give at least one message");
  }
  if (addGenerationPrompt && continueFinalMessage) {
    throw new UsageError(
      "add_generation_prompt and continue_final_message exclude each other",
      where,
      "give one of them",
    );
  }
  const chat = messages.map(withReasoning);
  const final = continueFinalMessage ? tagFinalMessage(chat, template, where) : undefined;
  const specialTokens = Object.entries(source.specialTokens ?? {}).filter(([, token]) => token != null);
  let text: string;
  try {
    text = renderProgram(
      compile(template),
      {
        ...Object.fromEntries(specialTokens),
        ...variables,
        messages: chat,
        tools: variables.tools ?? null,
        documents: variables.documents ?? null,
        add_generation_prompt: addGenerationPrompt,
      },
      now ?? (() => new Date()),
    );
  } catch (error) {
    throw new UsageError(
      `the chat template does not render these messages (${(error as Error).message})`,
      where,
      "give messages in the form the model's template expects, or mend chat_template.jinja",
    );
  }
  return final === undefined ? text : cutAtTag(text, final, where);
}

function pickTemplate(source: TemplateSource, tools: unknown, where: string | undefined): string {
  if ("template" in source) return source.template;
  const templates = source.chatTemplates;
  const template = (tools !== null ? templates.get("tool_use") : undefined) ?? templates.get("default");
  if (template !== undefined) return template;
  if (templates.size === 0) throw new UsageError("the model has no chat template", where, NO_TEMPLATE);
  throw new UsageError(
    `none of the model's chat templates is the default (${[...templates.keys()].sort().join(", ")})`,
    where,
    "copy one of them to chat_template.jinja in the model's folder",
  );
}

/** Parsed templates: a run renders one or two, thousands of times. */
const COMPILED = new Map<string, TemplateProgram>();
const COMPILED_CAPACITY = 16;

function compile(template: string): TemplateProgram {
  let program = COMPILED.get(template);
  if (program === undefined) {
    program = parseTemplate(template);
    if (COMPILED.size >= COMPILED_CAPACITY) COMPILED.clear();
    COMPILED.set(template, program);
  }
  return program;
}

const REASONING_FIELDS = ["reasoning_content", "thinking", "reasoning"] as const;

type Message = Record<string, unknown>;

function withReasoning(message: ChatMessage): Message {
  const given: Message = {};
  for (const [name, value] of Object.entries(message)) if (value != null) given[name] = value;
  const reasoning = REASONING_FIELDS.map((name) => given[name]).find((value) => value !== undefined);
  return reasoning === undefined ? given : { thinking: reasoning, ...given, reasoning_content: reasoning };
}

/** Put behind the final message before rendering; the text is cut where it turns up again. */
const TAG = "CONTINUE_FINAL_MESSAGE_TAG ";

/** Tags the last message in place and returns its text. */
function tagFinalMessage(chat: Message[], template: string, where: string | undefined): string {
  const refuse = (what: string): never => {
    throw new UsageError(what, where, "give a final message with text that the template prints");
  };
  const last = chat.at(-1)!;
  if (!template.includes("content")) refuse("continue_final_message: the template does not read content");
  if (typeof last.content === "string") {
    const text = last.content;
    last.content = text + TAG;
    return text;
  }
  if (!Array.isArray(last.content))
    refuse("continue_final_message: the final message has no text to continue");
  const blocks = [...(last.content as Message[])];
  const at = blocks.findLastIndex((block) => typeof block?.text === "string");
  if (at < 0) refuse("continue_final_message: the final message has no text to continue");
  const text = blocks[at]!.text as string;
  blocks[at] = { ...blocks[at], text: text + TAG };
  last.content = blocks;
  return text;
}

function cutAtTag(text: string, final: string, where: string | undefined): string {
  const at = text.lastIndexOf(TAG.trimEnd());
  if (at < 0 || !text.includes(strip(final))) {
    throw new UsageError(
      "continue_final_message: the template does not print the final message as it is",
      where,
      "leave continue_final_message off for this message",
    );
  }
  const before = text.slice(0, at);
  return text.startsWith(TAG, at) ? before : strip(before, undefined, false, true);
}
