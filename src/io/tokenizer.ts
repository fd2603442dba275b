import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { shown, UsageError } from "../core/errors.ts";
import { type AddedToken, AddedTokenFinder } from "./tokenizer-added.ts";
import { isObject, type JsonObject, Part, readJsonObject } from "./tokenizer-config.ts";
import { makeDecoder, type TextStream } from "./tokenizer-decode.ts";
import { isTokenId, makeModel, WordCache, type WordModel } from "./tokenizer-model.ts";
import { makeNormalizer, type Normalizer } from "./tokenizer-normalize.ts";
import { makeWords, type Words } from "./tokenizer-split.ts";

export interface EncodeOptions {
  /** Add what the tokenizer puts around a text (BOS, EOS). Default false: prompts are sent as they are. */
  readonly addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Leave special tokens out. Default false. */
  readonly skipSpecialTokens?: boolean;
}

/** Token ids in, settled text out; all pieces joined are `decode` of all ids. */
export interface DecodeStream {
  push(id: number): string;
  /** The text still held back. The stream is used up. */
  end(): string;
}

/** The names under which transformers knows special tokens and hands them to chat templates. */
const SPECIAL_NAMES = [
  "bos_token",
  "eos_token",
  "unk_token",
  "sep_token",
  "pad_token",
  "cls_token",
  "mask_token",
] as const;

const TOKENIZER_FILES = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "vocab.txt",
  "tokenizer.model",
  "chat_template.jinja",
] as const;

const TEMPLATE_FOLDER = "chat_templates";
const SAVE_AGAIN = "download the model's tokenizer again, or save it again with transformers";

interface Stages {
  readonly normalize: Normalizer;
  readonly words: Words;
  readonly model: WordModel;
  readonly decoder: () => TextStream;
  readonly added: readonly AddedToken[];
  /** Ids that addSpecialTokens puts before and after a text. */
  readonly prefix: readonly number[];
  readonly suffix: readonly number[];
}

/**
 * The tokenizer of a Hugging Face model folder (tokenizer.json of the tokenizers library). Encoding and
 * decoding give what tokenizers 0.23 and transformers 5 give for the same folder.
 */
export class Tokenizer {
  /** Number of tokens, added ones included. The model's embedding may have more rows. */
  readonly vocabSize: number;
  /** Ids that end a completion: of generation_config.json, else config.json, else the tokenizer's EOS token. */
  readonly eosIds: readonly number[];
  readonly eosId: number | null;
  readonly padId: number | null;
  readonly bosId: number | null;
  /** Special tokens by name (eos_token, …); a name without a token is absent. */
  readonly specialTokens: Readonly<Record<string, string>>;
  /** Chat templates by name; the one of a model that has a single template is "default". */
  readonly chatTemplates: ReadonlyMap<string, string>;
  /** Tokenizer files in the folder, relative to it: what to copy beside a saved model. */
  readonly files: readonly string[];

  readonly #stages: Stages;
  readonly #tokens: (string | undefined)[] = [];
  readonly #ids: Map<string, number>;
  readonly #special: ReadonlySet<number>;
  readonly #raw = new AddedTokenFinder();
  readonly #normalized = new AddedTokenFinder();
  readonly #cache = new WordCache();

  /** Reads tokenizer.json and, where present, the JSON and template files beside it. */
  static load(folder: string): Tokenizer {
    return new Tokenizer(folder);
  }

  private constructor(readonly folder: string) {
    const file = join(folder, "tokenizer.json");
    const json = readJsonObject(file, SAVE_AGAIN);
    if (json === undefined) {
      throw new UsageError(
        "no tokenizer.json",
        folder,
        "add the file; a folder with only tokenizer.model or vocab.txt is converted by " +
          "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
      );
    }
    const config = readJsonObject(join(folder, "tokenizer_config.json"), SAVE_AGAIN) ?? {};
    const legacy = readJsonObject(join(folder, "special_tokens_map.json"), SAVE_AGAIN) ?? {};
    this.specialTokens = specialTokensOf({ ...legacy, ...config });
    const stages = readStages(json, config, legacy, this.specialTokens, file);
    this.#stages = stages;

    this.#ids = new Map(stages.model.vocab);
    for (const token of stages.added) this.#ids.set(token.content, token.id);
    for (const [token, id] of stages.model.entries) this.#tokens[id] = token;
    const splitSpecial = config.split_special_tokens === true;
    for (const token of stages.added) {
      // What a normalized token is found by is also what it decodes to (tokenizers 0.23).
      const pattern = token.normalized ? stages.normalize(token.content) : token.content;
      this.#tokens[token.id] = pattern;
      if (!(splitSpecial && token.special)) {
        (token.normalized ? this.#normalized : this.#raw).add(pattern, token);
      }
    }
    // By text, as the reference: a Unigram may list a special token a second time.
    const special = new Set(stages.added.filter((token) => token.special).map((token) => token.content));
    this.#special = new Set(this.#tokens.flatMap((token, id) => (special.has(token ?? "") ? [id] : [])));
    this.vocabSize = this.#tokens.filter((token) => token !== undefined).length;

    const idOf = (name: string): number | null => this.#ids.get(this.specialTokens[name] ?? "") ?? null;
    const eos = idOf("eos_token");
    this.eosIds = eosOfModel(folder) ?? (eos === null ? [] : [eos]);
    this.eosId = this.eosIds[0] ?? null;
    this.padId = idOf("pad_token");
    this.bosId = idOf("bos_token");
    this.chatTemplates = readTemplates(folder, config);
    this.files = tokenizerFiles(folder);
  }

  /** The template for chats without tools, undefined where the model has none. */
  get chatTemplate(): string | undefined {
    return this.chatTemplates.get("default");
  }

  /** Token ids of a text [T]. Text that spells an added token becomes that token, as the reference does. */
  encode(text: string, options: EncodeOptions = {}): Int32Array {
    const { normalize, prefix, suffix } = this.#stages;
    const out: number[] = options.addSpecialTokens ? [...prefix] : [];
    for (const section of this.#raw.split(text.toWellFormed())) {
      if (section.id !== undefined) {
        out.push(section.id);
        continue;
      }
      for (const part of this.#normalized.split(normalize(section.text))) {
        if (part.id !== undefined) out.push(part.id);
        else this.#encodePlain(part.text, section.start === 0 && part.start === 0, out);
      }
    }
    if (options.addSpecialTokens) out.push(...suffix);
    return Int32Array.from(out);
  }

  #encodePlain(text: string, first: boolean, out: number[]): void {
    const { words, model } = this.#stages;
    for (const word of words.split(text, first)) {
      if (word === "") continue;
      let ids = this.#cache.get(word);
      if (ids === undefined) {
        ids = model.encodeWord(words.finish(word));
        this.#cache.set(word, ids);
      }
      for (const id of ids) out.push(id);
    }
  }

  /** The text of token ids. Ids without a token (rows that pad the embedding) are nothing. */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const stream = this.stream(options);
    let text = "";
    for (let i = 0; i < ids.length; i++) text += stream.push(ids[i]!);
    return text + stream.end();
  }

  /** A decoder that takes one id at a time and holds unfinished characters back. */
  stream(options: DecodeOptions = {}): DecodeStream {
    const skip = options.skipSpecialTokens === true;
    const stream = this.#stages.decoder();
    return {
      push: (id) => {
        const token = this.#tokens[id];
        return token === undefined || (skip && this.#special.has(id)) ? "" : stream.push(token);
      },
      end: () => stream.end(),
    };
  }

  idToToken(id: number): string | undefined {
    return this.#tokens[id];
  }

  tokenToId(token: string): number | undefined {
    return this.#ids.get(token);
  }

  /** Whether skipSpecialTokens leaves this id out. */
  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }
}

function readStages(
  json: JsonObject,
  config: JsonObject,
  legacy: JsonObject,
  specialTokens: Readonly<Record<string, string>>,
  file: string,
): Stages {
  const part = (name: string, kind: string): Part | null => {
    const value = json[name] ?? null;
    if (value === null) return null;
    if (!isObject(value)) throw new UsageError(`"${name}" is not an object`, file, SAVE_AGAIN);
    return new Part(value, file, kind);
  };
  if (!isObject(json.model)) throw new UsageError('no "model"', file, SAVE_AGAIN);
  const model = makeModel(json.model, file);
  const normalizer = part("normalizer", "normalizer");
  const added = readAddedTokens(json, config, legacy, specialTokens, model, file);
  const cleanUp =
    config.clean_up_tokenization_spaces === true &&
    (model.type !== "BPE" ||
      config.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output === true);
  const around = surroundings(part("post_processor", "post-processor"));
  if (config.add_bos_token !== undefined || config.add_eos_token !== undefined) {
    // transformers 5 builds the post-processor anew where the config speaks of BOS or EOS.
    const idOf = (name: string): number[] => {
      const content = specialTokens[name];
      const id = added.find((token) => token.content === content)?.id ?? model.vocab.get(content ?? "");
      return id === undefined ? [] : [id];
    };
    around.prefix = config.add_bos_token === true ? idOf("bos_token") : [];
    around.suffix = config.add_eos_token === true ? idOf("eos_token") : [];
  }
  return {
    normalize: normalizer === null ? (text) => text : makeNormalizer(normalizer),
    words: makeWords(part("pre_tokenizer", "pre-tokenizer")),
    model,
    decoder: makeDecoder(part("decoder", "decoder"), cleanUp),
    added,
    ...around,
  };
}

/** What a post-processor puts before and after a single text. */
function surroundings(part: Part | null): { prefix: number[]; suffix: number[] } {
  const around: { prefix: number[]; suffix: number[] } = { prefix: [], suffix: [] };
  if (part === null) return around;
  switch (part.type) {
    case "ByteLevel":
      return around;
    case "Sequence":
      for (const { prefix, suffix } of part.parts("processors").map(surroundings)) {
        around.prefix.unshift(...prefix);
        around.suffix.push(...suffix);
      }
      return around;
    case "BertProcessing":
    case "RobertaProcessing": {
      const id = (name: string): number => {
        const pair = part.json[name];
        if (!Array.isArray(pair) || !isTokenId(pair[1])) part.broken(name, "[token, id]");
        return (pair as [string, number])[1];
      };
      return { prefix: [id("cls")], suffix: [id("sep")] };
    }
    case "TemplateProcessing": {
      const { single, special_tokens: tokens } = part.json;
      if (!Array.isArray(single)) part.broken("single", "a list");
      let side = around.prefix;
      for (const item of single as unknown[]) {
        if (isObject(item) && isObject(item.SpecialToken)) {
          const { id } = item.SpecialToken;
          const token = isObject(tokens) && typeof id === "string" ? tokens[id] : undefined;
          if (!isObject(token) || !Array.isArray(token.ids) || !token.ids.every(isTokenId)) {
            part.broken("special_tokens", `an object with the ids of ${shown(id)}`);
          }
          side.push(...((token as JsonObject).ids as number[]));
        } else if (isObject(item) && isObject(item.Sequence)) {
          side = around.suffix;
        } else {
          part.broken("single", "a list of SpecialToken and Sequence");
        }
      }
      return around;
    }
    default:
      return part.unknown([
        "TemplateProcessing",
        "ByteLevel",
        "BertProcessing",
        "RobertaProcessing",
        "Sequence",
      ]);
  }
}

/**
 * The added tokens of tokenizer.json, then those transformers adds from tokenizer_config.json: entries of
 * added_tokens_decoder and special tokens that tokenizer.json does not list. One that the vocabulary
 * knows keeps its id, another gets the next free one.
 */
function readAddedTokens(
  json: JsonObject,
  config: JsonObject,
  legacy: JsonObject,
  specialTokens: Readonly<Record<string, string>>,
  model: WordModel,
  file: string,
): AddedToken[] {
  const listed = json.added_tokens ?? [];
  if (!Array.isArray(listed) || !listed.every(isObject)) {
    throw new UsageError('"added_tokens" is not a list of objects', file, SAVE_AGAIN);
  }
  const added = new Map<string, AddedToken>();
  for (const entry of listed as JsonObject[]) {
    const part = new Part({ type: "AddedToken", ...entry }, file, "added token");
    const id = part.number("id");
    if (!isTokenId(id)) part.broken("id", "a token's id");
    const token = addedToken(entry, part.string("content"), id);
    added.set(token.content, token);
  }
  const add = (entry: JsonObject, content: string): void => {
    if (content === "" || added.has(content)) return;
    let next = model.vocab.size;
    for (const token of added.values()) next = Math.max(next, token.id + 1);
    added.set(content, addedToken(entry, content, model.vocab.get(content) ?? next));
  };
  if (isObject(config.added_tokens_decoder)) {
    const entries = Object.entries(config.added_tokens_decoder).sort(([a], [b]) => Number(a) - Number(b));
    for (const [, entry] of entries) {
      if (isObject(entry) && typeof entry.content === "string") add(entry, entry.content);
    }
  }
  const special = new Set(Object.values(specialTokens));
  for (const source of [config, legacy]) {
    for (const name of ["additional_special_tokens", "extra_special_tokens"]) {
      const extra = source[name];
      const values = Array.isArray(extra) ? extra : isObject(extra) ? Object.values(extra) : [];
      for (const value of values) {
        const content = contentOf(value);
        if (content !== undefined) special.add(content);
      }
    }
  }
  for (const content of special) {
    add({ special: true, normalized: false }, content);
    const token = added.get(content);
    if (token !== undefined) added.set(content, { ...token, special: true });
  }
  return [...added.values()];
}

function addedToken(entry: JsonObject, content: string, id: number): AddedToken {
  const special = entry.special === true;
  return {
    id,
    content,
    special,
    singleWord: entry.single_word === true,
    lstrip: entry.lstrip === true,
    rstrip: entry.rstrip === true,
    normalized: typeof entry.normalized === "boolean" ? entry.normalized : !special,
  };
}

/** A token as configs spell it: a string, or an object with its content. */
function contentOf(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  return isObject(value) && typeof value.content === "string" ? value.content : undefined;
}

function specialTokensOf(config: JsonObject): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const name of SPECIAL_NAMES) {
    const content = contentOf(config[name]);
    if (content !== undefined) tokens[name] = content;
  }
  return tokens;
}

/** eos_token_id of generation_config.json, else of config.json: a number or a list. */
function eosOfModel(folder: string): number[] | undefined {
  for (const name of ["generation_config.json", "config.json"]) {
    const file = join(folder, name);
    const value = readJsonObject(file, "download the file again")?.eos_token_id ?? null;
    if (value === null) continue;
    const ids = Array.isArray(value) ? value : [value];
    if (!ids.every((id) => Number.isInteger(id) && id >= 0)) {
      throw new UsageError(`eos_token_id is ${shown(value)}`, file, "make it a token id or a list of them");
    }
    if (ids.length > 0) return ids;
  }
  return undefined;
}

/** Template files win over tokenizer_config.json, as in transformers. */
function readTemplates(folder: string, config: JsonObject): Map<string, string> {
  const templates = new Map<string, string>();
  const main = join(folder, "chat_template.jinja");
  if (existsSync(main)) templates.set("default", readFileSync(main, "utf8"));
  for (const name of namedTemplates(folder)) {
    templates.set(name.slice(0, -".jinja".length), readFileSync(join(folder, TEMPLATE_FOLDER, name), "utf8"));
  }
  if (templates.size > 0) return templates;
  const value = config.chat_template ?? null;
  if (typeof value === "string") {
    templates.set("default", value);
  } else if (
    Array.isArray(value) &&
    value.every((e) => isObject(e) && typeof e.name === "string" && typeof e.template === "string")
  ) {
    for (const { name, template } of value) templates.set(name, template);
  } else if (value !== null) {
    throw new UsageError(
      "chat_template is neither a string nor a list of {name, template}",
      join(folder, "tokenizer_config.json"),
      "put the template into chat_template.jinja instead",
    );
  }
  return templates;
}

function namedTemplates(folder: string): string[] {
  const at = join(folder, TEMPLATE_FOLDER);
  if (!existsSync(at)) return [];
  return readdirSync(at)
    .filter((name) => name.endsWith(".jinja"))
    .sort();
}

/** Files of a tokenizer and its templates that a folder has, relative to it. */
export function tokenizerFiles(folder: string): string[] {
  return [
    ...TOKENIZER_FILES.filter((name) => existsSync(join(folder, name))),
    ...namedTemplates(folder).map((name) => join(TEMPLATE_FOLDER, name)),
  ];
}
