/**
 * The files of a release: made here for Linux on x64 if its library has been built before, and, with RLV_TEST_LONG=1
 * (scripts/test release), from nothing, for every platform and twice over.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { version } from "../../package.json";
import { GLIBC, linuxProblems, newerThan } from "../../scripts/cross-linux.ts";
import { readElf } from "../../scripts/elf.ts";
import { noArm } from "../../scripts/emulator.ts";
import { readMachO } from "../../scripts/mach-o.ts";
import { EmptyRoot, noEmptyRoot } from "./empty-root.ts";
import { CROSS_ARM, oldDebian, type System } from "./systems.ts";

const root = resolve(import.meta.dir, "../..");
const LONG = process.env.RLV_TEST_LONG === "1";
const TARGETS = LONG ? ["linux-x64", "linux-arm64", "darwin-arm64"] : ["linux-x64"];
const scratch = mkdtempSync(join(tmpdir(), "rlv-release-"));
const out = join(scratch, "release");

const server = Bun.serve({
  port: 0,
  hostname: "127.0.0.1",
  fetch: (request) => {
    const path = join(out, new URL(request.url).pathname.split("/").at(-1)!);
    return existsSync(path) ? new Response(Bun.file(path)) : new Response("", { status: 404 });
  },
});
const URL_OF_FILES = `http://127.0.0.1:${server.port}/rlv/releases/download/v${version}`;

afterAll(async () => {
  await server.stop(true);
  rmSync(scratch, { recursive: true, force: true });
});

function release(folder: string, targets: readonly string[]): { code: number | null; said: string } {
  const command = [join(root, "scripts/release"), "--out", folder, "--url", URL_OF_FILES];
  const { exitCode, stderr } = Bun.spawnSync([...command, ...targets.flatMap((each) => ["--target", each])], {
    cwd: root,
    stdout: "ignore",
  });
  return { code: exitCode, said: stderr.toString() };
}

function made(): { code: number | null; said: string; missing: string | null } {
  if (process.platform !== "linux" || process.arch !== "x64")
    return { code: null, said: "", missing: "the programs are tested on Linux x64" };
  // From nothing, Zig compiles for minutes.
  if (!LONG && !existsSync(join(root, "build/linux-x64/librlv.so")))
    return { code: null, said: "", missing: "no library of Zig's yet: scripts/build --target linux-x64" };
  const result = release(out, TARGETS);
  const missing =
    result.code === 0
      ? null
      : /^.*(cannot fetch|fetched by pip|no Zig is pinned|GNU tar is needed).*$/m.exec(result.said);
  return { ...result, missing: missing?.[0] ?? null };
}

/** Where RLV_REQUIRE_RELEASE=1 nothing is to be missing. */
function skip(what: string, why: string): void {
  if (process.env.RLV_REQUIRE_RELEASE === "1") throw new Error(`${what}: ${why}`);
  process.stdout.write(`skip ${what}: ${why}\n`);
}

const built = made();
if (built.missing !== null) skip("the release", built.missing);

const file = (name: string) => join(out, name);
const archiveOf = (target: string) => file(`rlv-${version}-${target}.tar.gz`);
const sha256 = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");

function must(command: readonly string[], options: { cwd?: string; env?: Record<string, string> } = {}) {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], options);
  return { code: exitCode, out: stdout.toString(), err: stderr.toString() };
}

/** The same while this process goes on, which serves the files. */
async function installed(script: string, env: Record<string, string>) {
  const child = Bun.spawn(["sh", script], { env, stdout: "pipe", stderr: "pipe" });
  const [out, err] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { code: await child.exited, out, err };
}

function unpack(path: string, folder: string): string {
  mkdirSync(folder, { recursive: true });
  expect(must(["tar", "-xzf", path, "-C", folder])).toEqual({ code: 0, out: "", err: "" });
  return folder;
}

describe.skipIf(built.missing !== null)("a release", () => {
  test("scripts/release makes it, and every file has its line in SHA256SUMS", () => {
    expect(built.code, built.said).toBe(0);
    const names = readdirSync(out).sort();
    const platform = TARGETS.flatMap((each) => [
      `rlv-${version}-${each}.tar.gz`,
      `rlv-${each}-${version}.tgz`,
    ]);
    const others = [`rlv-${version}.cdx.json`, `rlv-${version}.tgz`, "rlv.rb", "install.sh", "SHA256SUMS"];
    expect(names).toEqual([...platform, ...others].sort());
    expect(must(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], { cwd: out })).toEqual({
      code: 0,
      out: "",
      err: "",
    });
    expect(readFileSync(file("SHA256SUMS"), "utf8").split("\n").length).toBe(names.length);
  });

  test("archives say nothing of who made them when and where", () => {
    const time = Number(must(["git", "log", "-1", "--format=%ct"], { cwd: root }).out);
    for (const target of TARGETS) {
      const list = must(["tar", "-tvzf", archiveOf(target), "--numeric-owner", "--full-time"], {
        env: { ...(process.env as Record<string, string>), TZ: "UTC" },
      });
      const lines = list.out.trimEnd().split("\n");
      const names = lines.map((line) => line.split(/\s+/).slice(5).join(" "));
      const top = `rlv-${version}-${target}`;
      const files = ["", "LICENSE", "README.md", "THIRD_PARTY.txt", "completions/", "completions/_rlv"];
      expect(names).toEqual(
        [...files, "completions/rlv.bash", "completions/rlv.fish", "rlv", "rlv.1"].map(
          (name) => `${top}/${name}`,
        ),
      );
      for (const line of lines) {
        expect(line).toMatch(/^(drwxr-xr-x|-rw[xr-]r-[xr-]r-[x-]|-rw-r--r--|-rwxr-xr-x) 0\/0 /);
        const [, date, clock] = /(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)/.exec(line)!;
        expect(Date.parse(`${date}T${clock}Z`) / 1000).toBe(time);
      }
      // gzip's header: no name, no time.
      expect([...readFileSync(archiveOf(target)).subarray(0, 8)]).toEqual([31, 139, 8, 0, 0, 0, 0, 0]);
    }
  });

  test(`programs and libraries for Linux load with glibc ${GLIBC}`, () => {
    for (const target of TARGETS.filter((each) => each.startsWith("linux"))) {
      const arch = target.slice("linux-".length) as "x64" | "arm64";
      const library = join(root, `build/${target}/librlv.so`);
      expect(linuxProblems(library, arch)).toEqual([]);
      const program = join(unpack(archiveOf(target), join(scratch, target)), `rlv-${version}-${target}/rlv`);
      expect(newerThan(program, GLIBC)).toEqual([]);
      expect(readElf(program).machine).toBe(readElf(library).machine);
      expect(readFileSync(program).indexOf(readFileSync(library))).toBeGreaterThan(0);
      // The clone's place would differ from machine to machine.
      expect(readFileSync(program).includes(root)).toBe(false);
      if (Bun.which("objdump") === null) continue;
      // What binutils find in it, for what our own reader might overlook.
      const listed = must(["objdump", "-p", library]).out;
      const versions = [...listed.matchAll(/GLIBC_([\d.]+)/g)].map((match) => `GLIBC_${match[1]}`);
      expect([...new Set(versions)].sort()).toEqual([...readElf(library).versions]);
    }
    // This machine's own library is a proof that younger ones are found.
    const host = join(root, "build/librlv.so");
    const needs = must(["objdump", "-p", host]).out;
    if (/GLIBC_2\.3\d/.test(needs)) expect(newerThan(host, GLIBC).length).toBeGreaterThan(0);
  });

  test("notices and the bill of materials list what is inside", () => {
    const lock: Record<string, { version: string; dev?: boolean; license: string }> = JSON.parse(
      readFileSync(join(root, "package-lock.json"), "utf8"),
    ).packages;
    const bundled = Object.entries(lock).filter(([path, { dev }]) => path !== "" && !dev);
    expect(bundled.length).toBeGreaterThan(8);
    const bom = JSON.parse(readFileSync(file(`rlv-${version}.cdx.json`), "utf8"));
    expect(bom).toMatchObject({ bomFormat: "CycloneDX", metadata: { component: { name: "rlv", version } } });
    const components: string[] = bom.components.map((each: { name: string }) => each.name);
    expect(new Set(components).size).toBe(components.length);
    const names = bundled.map(([path]) => path.replace(/^.*node_modules\//, ""));
    for (const name of [...names, "Bun", "libcxx"]) expect(components).toContain(name);
    for (const target of TARGETS) {
      const path = join(scratch, `notices-${target}`);
      const folder = join(unpack(archiveOf(target), path), `rlv-${version}-${target}`);
      const text = readFileSync(join(folder, "THIRD_PARTY.txt"), "utf8");
      for (const [at, { version: each, license }] of bundled)
        expect(text).toContain(`${at.replace(/^.*node_modules\//, "")} ${each}: ${license}\n`);
      expect(text).toContain("JavaScriptCore");
      expect(text.includes("metal-cpp")).toBe(target === "darwin-arm64");
      rmSync(path, { recursive: true });
    }
  });

  describe("the install script", () => {
    const env = (home: string) => ({ PATH: "/usr/bin:/bin", HOME: home });

    test.skipIf(Bun.which("curl") === null && Bun.which("wget") === null)(
      "puts everything in its place",
      async () => {
        const home = join(scratch, "home");
        mkdirSync(home);
        const { code, out: said, err } = await installed(file("install.sh"), env(home));
        expect(code, err).toBe(0);
        expect(said).toContain(`${home}/.local/bin`);
        const place = (name: string) => join(home, ".local", name);
        expect(must([place("bin/rlv"), "version"], { env: env(home) }).out).toBe(`rlv ${version}\n`);
        expect(statSync(place("bin/rlv")).mode & 0o777).toBe(0o755);
        for (const name of [
          "share/man/man1/rlv.1",
          "share/bash-completion/completions/rlv",
          "share/zsh/site-functions/_rlv",
          "share/fish/vendor_completions.d/rlv.fish",
          "share/doc/rlv/THIRD_PARTY.txt",
        ])
          expect(statSync(place(name)).size).toBeGreaterThan(0);
        const prefix = join(scratch, "prefix");
        expect((await installed(file("install.sh"), { ...env(home), PREFIX: prefix })).code).toBe(0);
        expect(existsSync(join(prefix, "bin/rlv"))).toBe(true);
      },
    );

    test("refuses an archive with another hash and leaves nothing behind", async () => {
      const home = join(scratch, "damaged");
      mkdirSync(home);
      const wrong = readFileSync(file("install.sh"), "utf8").replace(/echo [0-9a-f]{8}/, "echo 00000000");
      const path = join(scratch, "wrong.sh");
      writeFileSync(path, wrong);
      const { code, err } = await installed(path, env(home));
      expect(code).toBe(1);
      expect(err).toMatch(/^rlv: error: the archive is not the one that was released: .*: expected 00000000/);
      expect(readdirSync(home)).toEqual([]);
    });

    test("where there is no program for the machine it says so and fetches nothing", async () => {
      const home = join(scratch, "foreign");
      const bin = join(scratch, "foreign-bin");
      mkdirSync(home);
      mkdirSync(bin);
      const machines = [
        ["Linux", "riscv64", "no program for riscv64: uname: x86-64 and arm64 have one"],
        ["FreeBSD", "x86_64", "no program for FreeBSD: uname: Linux and macOS have one"],
        ["Darwin", "x86_64", "no program for darwin-x64 in this release: uname: build it from source"],
      ] as const;
      for (const [system, processor, says] of machines) {
        const text = `#!/bin/sh\ncase $1 in -s) echo ${system} ;; -m) echo ${processor} ;; esac\n`;
        writeFileSync(join(bin, "uname"), text, { mode: 0o755 });
        const asked = { PATH: `${bin}:/usr/bin:/bin`, HOME: home, RLV_URL: "http://127.0.0.1:9" };
        const { code, err } = await installed(file("install.sh"), asked);
        expect([code, err]).toEqual([1, `rlv: error: ${says}\n`]);
      }
      expect(readdirSync(home)).toEqual([]);
    });

    test("a download that breaks off leaves nothing behind", async () => {
      const home = join(scratch, "broken-off");
      const temporary = join(scratch, "broken-off-tmp");
      mkdirSync(home);
      mkdirSync(temporary);
      const start = readFileSync(archiveOf("linux-x64")).subarray(0, 100_000);
      const size = statSync(archiveOf("linux-x64")).size;
      const lines = ["HTTP/1.1 200 OK", `Content-Length: ${size}`, "Connection: close", "", ""];
      using cut = Bun.listen({
        hostname: "127.0.0.1",
        port: 0,
        socket: {
          data(socket) {
            socket.write(lines.join("\r\n"));
            socket.end(start);
          },
        },
      });
      const asked = { ...env(home), TMPDIR: temporary, RLV_URL: `http://127.0.0.1:${cut.port}` };
      const { code, err } = await installed(file("install.sh"), asked);
      expect(code).toBe(1);
      expect(err).toMatch(/^rlv: error: cannot fetch: http:.*linux-x64\.tar\.gz: check the network$/m);
      expect([...readdirSync(home), ...readdirSync(temporary)]).toEqual([]);
    });

    test("a script that was cut off does nothing", () => {
      const text = readFileSync(file("install.sh"), "utf8");
      const home = join(scratch, "cut");
      mkdirSync(home);
      must(["sh", "-c", text.slice(0, text.lastIndexOf("\nmain"))], { env: env(home) });
      expect(readdirSync(home)).toEqual([]);
    });

    test.skipIf(Bun.which("shellcheck") === null)("shellcheck finds nothing", () => {
      expect(must(["shellcheck", file("install.sh")])).toEqual({ code: 0, out: "", err: "" });
    });
  });

  test("the formula names the files and their hashes", () => {
    const text = readFileSync(file("rlv.rb"), "utf8");
    for (const target of TARGETS) {
      expect(text).toContain(`url "${URL_OF_FILES}/rlv-${version}-${target}.tar.gz"\n`);
      expect(text).toContain(`sha256 "${sha256(archiveOf(target))}"\n`);
    }
    expect(text.match(/\bdo$/gm)!.length + 2).toBe(text.match(/^ *end$/gm)!.length);
    if (Bun.which("ruby") !== null) expect(must(["ruby", "-c", file("rlv.rb")]).out).toBe("Syntax OK\n");
  });

  test.skipIf(Bun.which("node") === null)("the npm package starts the program of this platform", async () => {
    const modules = join(scratch, "npm/node_modules");
    const put = (archive: string, name: string) => {
      unpack(file(archive), join(modules, name));
      // npm takes the archive's one folder for the package.
      must(["sh", "-c", "mv package/* . && rmdir package"], { cwd: join(modules, name) });
      return JSON.parse(readFileSync(join(modules, name, "package.json"), "utf8"));
    };
    const launcher = put(`rlv-${version}.tgz`, "rlv");
    expect(launcher).toMatchObject({ name: "rlv", version, bin: { rlv: "bin/rlv.cjs" } });
    expect(launcher.scripts).toBeUndefined();
    const optional = Object.fromEntries(TARGETS.map((target) => [`@rlv/${target}`, version]));
    expect(launcher.optionalDependencies).toEqual(optional);
    const start = join(modules, "rlv", launcher.bin.rlv);
    const env = { PATH: process.env.PATH!, HOME: scratch };
    const without = must(["node", start, "version"], { env });
    expect([without.code, without.err.split(":").slice(0, 3).join(":")]).toEqual([
      1,
      "rlv: error: no program for this machine",
    ]);
    const platform = put(`rlv-linux-x64-${version}.tgz`, "@rlv/linux-x64");
    expect(platform).toMatchObject({ os: ["linux"], cpu: ["x64"], libc: ["glibc"], version });
    expect(must(["node", start, "version"], { env })).toEqual({ code: 0, out: `rlv ${version}\n`, err: "" });
    expect(must(["node", start, "trian"], { env }).code).toBe(2);
    const child = Bun.spawn(["node", start, "serve", "--no_open", "--port", "0"], {
      cwd: scratch,
      env,
      stdout: "pipe",
      stderr: "ignore",
    });
    await child.stdout.getReader().read();
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
  });

  test.skipIf(!LONG || Bun.which("npm") === null)(
    "npm installs the packages without a network and without scripts",
    () => {
      const folder = join(scratch, "npm-install");
      mkdirSync(folder);
      writeFileSync(join(folder, "package.json"), '{ "private": true }\n');
      const files = [`rlv-${version}.tgz`, `rlv-linux-x64-${version}.tgz`].map(file);
      const env = { PATH: process.env.PATH!, HOME: scratch, npm_config_cache: join(scratch, "npm-cache") };
      const installing = must(["npm", "install", "--offline", "--no-audit", "--no-fund", ...files], {
        cwd: folder,
        env,
      });
      expect(installing.code, installing.err).toBe(0);
      expect(readdirSync(join(folder, "node_modules/@rlv"))).toEqual(["linux-x64"]);
      const said = must(["npx", "--no", "--offline", "--", "rlv", "--version"], { cwd: folder, env });
      expect([said.code, said.out]).toEqual([0, `rlv ${version}\n`]);
      rmSync(folder, { recursive: true });
    },
  );

  /**
   * In a root of its own: trains with the flags `train`, chats, quantizes, serves the page; within `seconds`. Returns
   * what the C library there says of itself and what rlv doctor says.
   */
  function smoke(target: "linux-x64" | "linux-arm64", system: System | null, train: string, seconds: number) {
    const name = `rlv-${version}-${target}`;
    const folder = unpack(archiveOf(target), join(scratch, `smoke-${target}`));
    using place = new EmptyRoot(join(folder, name, "rlv"), system);
    unpack(archiveOf(target), join(place.path, "opt"));
    const script = `set -e
cd /home
for tool in bun node npm gcc cc c++ python3; do if command -v $tool; then exit 9; fi; done
rlv version
rlv train --num_train_steps 3 --run_name smoke --device cpu --log_every 1 ${train}
echo "-- chat"
echo "What is 2 + 3? Answer with an integer." | rlv chat runs/smoke/checkpoints/final --temperature 0
echo "-- quantize"
rlv quantize --model runs/smoke/checkpoints/final --quant_type int4 --dataset builtin:arithmetic/eval.jsonl \\
  --num_prompts 4 --max_new_tokens 8 --json
echo "-- doctor"
HF_HUB_OFFLINE=1 rlv doctor
ip link set lo up
rlv serve --no_open --port 8500 --json >served &
server=$!
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do if [ -s served ]; then break; fi; sleep 1; done
token=$(sed 's/.*"token":"\\([^"]*\\)".*/\\1/' served)
echo "-- page"
wget -q -O - --header "Authorization: Bearer $token" http://127.0.0.1:8500/
echo "-- runs"
wget -q -O - --header "Authorization: Bearer $token" http://127.0.0.1:8500/api/runs
echo "-- stranger"
if wget -q -O - http://127.0.0.1:8500/; then exit 8; fi
kill $server
wait $server
echo "-- metrics"
cat runs/smoke/metrics.jsonl
echo "-- libc"
$(ls /lib/libc.so.6 /lib/*/libc.so.6 2>/dev/null | head -n 1)
echo "-- end"
ls runs/smoke/checkpoints/final`;
    const { code, out: said, err } = place.run(script, `/bin:/opt/${name}`, seconds);
    expect(code, `${said}\n${err}`).toBe(0);
    const part = (title: string) => said.split(`-- ${title}\n`)[1]!.split("\n-- ")[0]!;
    expect(said).toStartWith(`rlv ${version}\n`);
    expect(part("chat").trim()).not.toBe("");
    const quantized = JSON.parse(part("quantize"));
    expect(existsSync(join(place.path, resolve("/home", quantized.output), "model.safetensors"))).toBe(true);
    expect(part("doctor")).toMatch(/^ok {3}native library +\/home\/\.cache\/rlv\/lib\//m);
    expect(part("page")).toMatch(/<!doctype html>/i);
    expect(part("runs")).toContain('"smoke"');
    expect(part("stranger")).not.toMatch(/<html/i);
    // On this processor too the sampler is the trainer.
    const differences = [...part("metrics").matchAll(/"train\/sampler_logp_diff_max":([^,}]+)/g)];
    expect(differences.map((match) => match[1])).toEqual(["0", "0", "0"]);
    expect(part("end")).toContain("model.safetensors");
    return { libc: /GNU C Library .* version (\d+\.\d+)/.exec(part("libc"))?.[1], doctor: part("doctor") };
  }

  const noRoot = built.missing ?? noEmptyRoot();
  if (noRoot !== null) skip("the release in an empty root", noRoot);

  test.skipIf(noRoot !== null)(
    "where nothing else is installed, offline: train, chat, quantize, serve",
    () => {
      expect(smoke("linux-x64", null, "", 100).libc).toBeDefined();
    },
  );

  const old = (["x64", "arm64"] as const).map((arch) =>
    !LONG || noRoot !== null
      ? "scripts/test release does it"
      : oldDebian(arch, join(scratch, `debian-${arch}`)),
  );
  const [oldX64, oldArm] = old as [System | string, System | string];
  if (typeof oldX64 === "string") skip("the release with an old C library", oldX64);

  test.skipIf(typeof oldX64 === "string")(
    "with the C library of an old Debian: train, chat, quantize, serve",
    () => {
      expect(smoke("linux-x64", oldX64 as System, "", 100).libc).toBe("2.31");
    },
  );

  // Where the old one cannot be had, the one for cross compilers.
  const arm = typeof oldArm === "string" ? CROSS_ARM : oldArm;
  const noArmRoot = !LONG ? "scripts/test release does it" : (built.missing ?? noArm() ?? noEmptyRoot(true));
  if (noArmRoot !== null) skip("the program for Linux on arm64 under emulation", noArmRoot);

  test.skipIf(noArmRoot !== null)(
    "the program for Linux on arm64, under emulation: train, chat, quantize, serve",
    () => {
      const few = "--batch_size 2 --group_size 4 --eval_num_prompts 4 --threads 1";
      const { libc, doctor } = smoke("linux-arm64", arm, few, 570);
      expect(doctor).toMatch(/^ok {3}device cpu +name cpu, isa neon, /m);
      if (typeof oldArm !== "string") expect(libc).toBe("2.31");
    },
    600_000,
  );

  test.skipIf(!LONG)("the program for macOS is in its archive, signed", () => {
    const folder = unpack(archiveOf("darwin-arm64"), join(scratch, "darwin"));
    const { arch, signature } = readMachO(join(folder, `rlv-${version}-darwin-arm64/rlv`));
    expect(arch).toBe("arm64");
    expect(signature).toMatchObject({ adHoc: true, problems: [] });
  });

  test.skipIf(!LONG)(
    "made again from nothing, in a clone elsewhere, it has the same bytes",
    () => {
      const clone = join(scratch, "elsewhere");
      expect(must(["git", "clone", "--quiet", root, clone]).code).toBe(0);
      // What is not committed belongs to it too, or the two would differ by that.
      for (const name of must(["git", "ls-files", "--modified", "--others", "--exclude-standard"], {
        cwd: root,
      })
        .out.split("\n")
        .filter((each) => each !== "" && existsSync(join(root, each))))
        cpSync(join(root, name), join(clone, name));
      cpSync(join(root, "node_modules"), join(clone, "node_modules"), {
        recursive: true,
        verbatimSymlinks: true,
      });
      const again = join(scratch, "again");
      const words = ["--out", again, "--url", URL_OF_FILES];
      const env = { ...(process.env as Record<string, string>), TZ: "Asia/Tokyo", LC_ALL: "C" };
      const command = ["sh", "-c", 'umask 077 && exec scripts/release "$@"', "release", ...words];
      const { code, err } = must(command, { cwd: clone, env });
      expect(code, err).toBe(0);
      expect(readFileSync(join(again, "SHA256SUMS"), "utf8")).toBe(readFileSync(file("SHA256SUMS"), "utf8"));
    },
    3_600_000,
  );
});
