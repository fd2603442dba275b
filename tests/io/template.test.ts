import { describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { UsageError } from "../../src/core/errors.ts";
import { type ChatMessage, hasChatTemplate, type RenderOptions, renderChat } from "../../src/io/template.ts";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import { goldenCases } from "../goldens-dirs.ts";
import { errorOf, TemporaryFolder } from "./temporary.ts";

const CASES = goldenCases("text");
const ofKind = (kind: string) => CASES.filter((c) => c.kind === kind).map((c) => [c.name, c] as const);

interface ChatCase {
  readonly template: string;
  readonly messages: ChatMessage[];
  readonly options: Record<string, unknown>;
  readonly expected: unknown;
}

interface FolderCase extends ChatCase {
  readonly folder: string;
  readonly eos: string;
  readonly eos_id: number;
}

/** The options of a golden case under our names. */
function optionsOf(given: Record<string, unknown>): RenderOptions {
  const { add_generation_prompt, continue_final_message, ...variables } = given;
  return {
    addGenerationPrompt: add_generation_prompt === true,
    continueFinalMessage: continue_final_message === true,
    ...variables,
  };
}

test("there are goldens", () => {
  for (const kind of ["chat_template", "chat_template_files"]) expect(ofKind(kind).length).toBeGreaterThan(0);
});

describe.each(ofKind("chat_template"))("golden %s", (_, c) => {
  const { templates, special_tokens: specialTokens } = c.spec;
  const cases: ChatCase[] = c.spec.cases;

  test.each(Object.keys(templates))("template %s", (name) => {
    const own = cases.filter((k) => k.template === name);
    expect(own.length).toBeGreaterThan(0);
    for (const k of own) {
      const render = () =>
        renderChat({ template: templates[name], specialTokens }, k.messages, optionsOf(k.options));
      if (typeof k.expected === "string") expect(render()).toBe(k.expected);
      else expect(errorOf(render)).toBeInstanceOf(UsageError);
    }
  });
});

describe.each(ofKind("chat_template_files"))("golden %s", (_, c) => {
  const folders: FolderCase[] = c.spec.cases;

  test.each(folders.map((k) => [k.folder, k] as const))("folder %s", (folder, k) => {
    const tokenizer = Tokenizer.load(join(c.dir, folder));
    expect(tokenizer.specialTokens.eos_token).toBe(k.eos);
    expect(tokenizer.eosId).toBe(k.eos_id);
    if (typeof k.expected === "string") {
      expect(hasChatTemplate(tokenizer)).toBe(true);
      expect(renderChat(tokenizer, k.messages)).toBe(k.expected);
    } else {
      expect(hasChatTemplate(tokenizer)).toBe(false);
      const error = errorOf(() => renderChat(tokenizer, k.messages));
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toContain("no chat template");
      expect(error.message).toContain("chat_template.jinja");
    }
  });
});

describe.each(ofKind("jinja"))("golden %s", (_, c) => {
  const cases: ChatCase[] = c.spec.cases;

  test.each(cases.map((k) => [k.template, k.expected] as const))("%s", (template, expected) => {
    const now = () => new Date(c.spec.now);
    // The variables stand beside one message that the template does not read.
    const render = () => renderChat({ template }, [{ role: "user" }], { ...c.spec.variables, now });
    if (typeof expected === "string") expect(render()).toBe(expected);
    else expect(errorOf(render)).toBeInstanceOf(UsageError);
  });
});

const USER = [{ role: "user", content: "hi" }];
const render = (template: string, messages: ChatMessage[] = USER, options: RenderOptions = {}) =>
  renderChat({ template }, messages, options);

describe("what transformers does around the template", () => {
  test("fields that are null are dropped", () => {
    const template = "{{ messages[0].tool_calls is defined }}{{ messages[0].content is defined }}";
    expect(render(template, [{ role: "user", content: null, tool_calls: null }])).toBe("FalseFalse");
  });

  test("reasoning is there under all its names", () => {
    const template = "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}";
    expect(render(template, [{ role: "assistant", content: "", reasoning: "r" }])).toBe("r|r");
  });

  test("special tokens that are null are not defined, tools and documents are None", () => {
    const template = "{{ bos_token is defined }}{{ eos_token }}{{ tools is none }}{{ documents is none }}";
    const specialTokens = { bos_token: null, eos_token: "</s>" };
    expect(renderChat({ template, specialTokens }, USER)).toBe("False</s>TrueTrue");
  });

  test("variables of the caller win over special tokens", () => {
    const specialTokens = { eos_token: "</s>" };
    expect(renderChat({ template: "{{ eos_token }}", specialTokens }, USER, { eos_token: "x" })).toBe("x");
  });

  test("the messages given are left as they are", () => {
    const messages = [{ role: "assistant", content: [{ type: "text", text: "a" }] }];
    const template = "{% for b in messages[0].content %}{{ b.text }}{% endfor %}!";
    expect(render(template, messages, { continueFinalMessage: true })).toBe("a");
    expect(messages).toEqual([{ role: "assistant", content: [{ type: "text", text: "a" }] }]);
  });

  test("a chat to continue keeps or loses its trailing space as the template does", () => {
    const messages = [{ role: "assistant", content: "a b  " }];
    const continueFinalMessage = true;
    expect(render("<{{ messages[0].content }}>", messages, { continueFinalMessage })).toBe("<a b  ");
    expect(render("<{{ messages[0].content | trim }}>", messages, { continueFinalMessage })).toBe("<a b");
  });

  test("Windows line ends and a newline at the end of the file do not show", () => {
    expect(render("{% if true %}\r\na\r\n{% endif %}\r\nb\r\n")).toBe("a\nb");
  });

  test("generation marks are left out", () => {
    expect(render("{% generation %}{{ messages[0].content }}{% endgeneration %}!")).toBe("hi!");
  });
});

describe("template files", () => {
  const without = join(import.meta.dir, "../goldens/text/chat_template_files/none");
  const folderWith = (files: Record<string, string>): TemporaryFolder => {
    const folder = new TemporaryFolder();
    cpSync(without, folder.path, { recursive: true });
    mkdirSync(folder.file("chat_templates"));
    for (const [name, text] of Object.entries(files)) writeFileSync(folder.file(name), text);
    return folder;
  };

  test("tool_use is for chats with tools", () => {
    using folder = folderWith({ "chat_template.jinja": "D", "chat_templates/tool_use.jinja": "T" });
    const tokenizer = Tokenizer.load(folder.path);
    expect(tokenizer.chatTemplate).toBe("D");
    expect(renderChat(tokenizer, USER)).toBe("D");
    expect(renderChat(tokenizer, USER, { tools: [{ name: "t" }] })).toBe("T");
    expect(tokenizer.files).toContain(join("chat_templates", "tool_use.jinja"));
  });

  test("several templates without a default are refused with their names", () => {
    using folder = folderWith({ "chat_templates/rag.jinja": "R" });
    const error = errorOf(() => renderChat(Tokenizer.load(folder.path), USER));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toContain("rag");
  });

  test("a template of the wrong type is refused", () => {
    using folder = folderWith({ "tokenizer_config.json": '{"chat_template": 7}' });
    expect(errorOf(() => Tokenizer.load(folder.path)).message).toContain("tokenizer_config.json");
  });
});

describe("errors", () => {
  test("what the template raises is in the message, on one line", () => {
    const error = errorOf(() => render("{{ raise_exception('roles must alternate') }}"));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toContain("roles must alternate");
  });

  test.each([
    ["a syntax error", "{% if %}"],
    ["an unknown filter", "{{ messages | frobnicate }}"],
    ["a method the sandbox forbids", "{{ messages.append(1) }}"],
    ["an undefined variable's field", "{{ nothing.at.all }}"],
    ["text plus a number", "{{ 'a' + 1 }}"],
  ])("%s", (_, template) => {
    expect(errorOf(() => render(template))).toBeInstanceOf(UsageError);
  });

  test("no messages, and options that exclude each other", () => {
    expect(errorOf(() => render("x", []))).toBeInstanceOf(UsageError);
    const both = { addGenerationPrompt: true, continueFinalMessage: true };
    expect(errorOf(() => render("{{ messages[0].content }}", USER, both))).toBeInstanceOf(UsageError);
  });
});
