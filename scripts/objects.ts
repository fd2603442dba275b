/**
 * Compiles and links what changed. An object is up to date when the hash over its command, its compiler and the
 * content of every file it includes is the one it was made from; times do not matter, so a checkout of another
 * branch costs no rebuild.
 */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { basename, join, relative, resolve } from "node:path";

export const root = resolve(import.meta.dir, "..");

export function fail(line: string): never {
  process.stderr.write(`rlv: error: ${line}\n`);
  process.exit(1);
}

export interface Unit {
  readonly source: string;
  readonly object: string;
  /** Program and its first arguments. */
  readonly compiler: readonly string[];
  readonly flags: readonly string[];
}

/** What a file on disk was made from. */
interface Made {
  readonly key: string;
  readonly deps: readonly string[];
}

/** A path or flag as it reads from the root: a checkout that is moved or copied keeps what it has made. */
function fromRoot(text: string): string {
  const [, flag = "", path = ""] = /^(-[\w-]*=?)?(\/.*)$/.exec(text) ?? [];
  if (path === root) return `${flag}.`;
  return path.startsWith(`${root}/`) ? flag + path.slice(root.length + 1) : text;
}

const hash = (parts: readonly string[]) => Bun.hash(parts.join("\0")).toString(16);

export class Objects {
  readonly #recordPath: string;
  readonly #made: Record<string, Made>;
  readonly #hashes = new Map<string, string>();
  readonly #versions = new Map<string, string>();

  /** `folder` holds the record of what was made. */
  constructor(folder: string) {
    mkdirSync(folder, { recursive: true });
    this.#recordPath = join(folder, "made.json");
    this.#made = existsSync(this.#recordPath) ? JSON.parse(readFileSync(this.#recordPath, "utf8")) : {};
  }

  version(compiler: readonly string[]): string {
    const key = compiler.join(" ");
    let version = this.#versions.get(key);
    if (version === undefined) {
      version = Bun.spawnSync([...compiler, "--version"]).stdout.toString();
      this.#versions.set(key, version);
    }
    return version;
  }

  /** Number of objects that were compiled. Ends the program if a source does not compile. */
  async compile(units: readonly Unit[], what: string): Promise<number> {
    const stale = units.filter((each) => !this.#upToDate(each));
    if (stale.length === 0) return 0;
    const program = units[0]!.compiler[0]!;
    process.stderr.write(`rlv: compiling ${stale.length} of ${units.length} ${what} with ${program}\n`);
    const queue = [...stale];
    let failed = 0;
    const worker = async () => {
      for (let next = queue.shift(); next !== undefined; next = queue.shift())
        if (!(await this.#compileOne(next))) failed += 1;
    };
    await Promise.all(Array.from({ length: Math.max(1, availableParallelism()) }, worker));
    this.#save();
    if (failed > 0) fail(`${failed} ${what} do not compile: metal: see the messages above`);
    return stale.length;
  }

  /**
   * Links to a temporary file and renames it, since a running program keeps its library; nothing is done if the
   * target was made from the very same objects, command and other files that the linker reads. Returns whether it was
   * linked.
   */
  link(
    target: string,
    parts: readonly string[],
    command: readonly string[],
    read: readonly string[] = [],
  ): boolean {
    const name = fromRoot(target);
    const keys = parts.map(
      (object) => `${fromRoot(object)} ${this.#made[fromRoot(object)]?.key ?? this.#hashOf(object)}`,
    );
    const key = hash([
      this.version(command.slice(0, 1)),
      ...command.map(fromRoot),
      ...keys,
      ...read.map((path) => this.#hashOf(path)),
    ]);
    if (existsSync(target) && this.#made[name]?.key === key) return false;
    // Of the same name, since a linker may write the name of its output into it.
    const scratch = `${target}.tmp-${process.pid}`;
    const temporary = join(scratch, basename(target));
    mkdirSync(scratch, { recursive: true });
    const [program, ...flags] = command;
    const result = Bun.spawnSync([program!, ...parts, ...flags, "-o", temporary], {
      cwd: root,
      stderr: "inherit",
    });
    if (result.exitCode === 0) renameSync(temporary, target);
    rmSync(scratch, { recursive: true, force: true });
    if (result.exitCode !== 0) fail(`does not link: ${relative(root, target)}: see the messages above`);
    this.#made[name] = { key, deps: [] };
    this.#save();
    return true;
  }

  #command(unit: Unit): string[] {
    const deps = ["-MMD", "-MF", `${unit.object}.d`];
    return [...unit.compiler, ...unit.flags, ...deps, "-c", unit.source, "-o", unit.object].map((flag) =>
      flag.startsWith("-D") ? flag : fromRoot(flag),
    );
  }

  #key(unit: Unit, deps: readonly string[]): string {
    const version = this.version(unit.compiler.slice(0, 1));
    return hash([
      version,
      ...this.#command(unit),
      ...deps.flatMap((dep) => [dep, this.#hashOf(join(root, dep))]),
    ]);
  }

  #upToDate(unit: Unit): boolean {
    const record = this.#made[fromRoot(unit.object)];
    return record !== undefined && existsSync(unit.object) && record.key === this.#key(unit, record.deps);
  }

  async #compileOne(unit: Unit): Promise<boolean> {
    const child = Bun.spawn(this.#command(unit), { stdout: "pipe", stderr: "pipe", cwd: root });
    const [text, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
    if (text !== "") process.stderr.write(text);
    if (code !== 0) {
      rmSync(unit.object, { force: true });
      delete this.#made[fromRoot(unit.object)];
      return false;
    }
    const deps = dependencies(`${unit.object}.d`);
    this.#made[fromRoot(unit.object)] = { key: this.#key(unit, deps), deps };
    return true;
  }

  #hashOf(path: string): string {
    let known = this.#hashes.get(path);
    if (known === undefined) {
      known = existsSync(path) ? Bun.hash(readFileSync(path)).toString(16) : "absent";
      this.#hashes.set(path, known);
    }
    return known;
  }

  #save(): void {
    writeFileSync(`${this.#recordPath}.tmp`, JSON.stringify(this.#made));
    renameSync(`${this.#recordPath}.tmp`, this.#recordPath);
  }
}

/** The files of this project, from its root, in a make rule `object: file file \⏎ file`. */
function dependencies(path: string): string[] {
  const rule = readFileSync(path, "utf8").replaceAll("\\\n", " ");
  return rule
    .slice(rule.indexOf(": ") + 2)
    .trim()
    .split(/(?<!\\)\s+/)
    .map((dep) => relative(root, resolve(root, dep.replaceAll("\\ ", " "))))
    .filter((dep) => !dep.startsWith(".."));
}
