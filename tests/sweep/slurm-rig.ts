/**
 * A Slurm of one node on loopback: Debian's munged, slurmctld and slurmd with their own configuration, key, ports, state
 * and logs in a temporary folder. Nothing of the system's is read or changed.
 */
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PROGRAMS = [
  ...["munged", "slurmctld", "slurmd", "slurmstepd"],
  ...["sbatch", "squeue", "scontrol", "sinfo", "scancel", "setpriv"],
];
/** Where Debian keeps daemons, which is on root's PATH alone. */
const PATH = `${process.env.PATH ?? ""}:/usr/sbin:/sbin`;
const PATIENCE_MS = 30_000;

/** Why this machine cannot run one; null if it can. Told in the names of the tests that are skipped. */
export const noSlurm: string | null = (() => {
  if (process.platform !== "linux") return "needs Linux";
  const missing = PROGRAMS.filter((name) => name !== "slurmstepd" && Bun.which(name, { PATH }) === null);
  if (missing.length > 0) return `no ${missing.join(", ")} here`;
  // A job's batch step is started by root.
  return process.getuid?.() === 0 ? null : "needs root";
})();

export class SlurmRig implements AsyncDisposable {
  readonly root = mkdtempSync(join(tmpdir(), "rlv-slurm-"));
  /** What Slurm's programs need to find this one. */
  readonly env: Readonly<Record<string, string>> = { PATH, SLURM_CONF: this.#file("slurm.conf") };
  readonly #daemons: ReturnType<typeof Bun.spawn>[] = [];

  /** Starts the daemons and waits until the node takes jobs. */
  static async start(cpus: number): Promise<SlurmRig> {
    const rig = new SlurmRig();
    try {
      await rig.#start(cpus);
      return rig;
    } catch (error) {
      await rig[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #start(cpus: number): Promise<void> {
    // Clients must be able to reach the socket through its folder.
    chmodSync(this.root, 0o755);
    for (const name of ["munge", "state", "spool"]) mkdirSync(this.#file(name), { mode: 0o711 });
    writeFileSync(this.#file("munge/key"), crypto.getRandomValues(new Uint8Array(1024)), { mode: 0o600 });
    const [control, node] = await Promise.all([freePort(), freePort()]);
    writeFileSync(this.#file("slurm.conf"), this.#configuration(cpus, control, node));
    const munge = (name: string) => this.#file(`munge/${name}`);
    this.#daemon("munged", [
      ...["--foreground", "--num-threads=2", `--socket=${munge("socket")}`, `--key-file=${munge("key")}`],
      ...[`--pid-file=${munge("pid")}`, `--log-file=${munge("log")}`, `--seed-file=${munge("seed")}`],
    ]);
    await this.#until("munge answers", () => this.#said("munged", "Created"));
    this.#daemon("slurmctld", ["-D", "-c"]);
    this.#daemon("slurmd", ["-D", "-N", "node"]);
    await this.#until("the node is idle", () => this.ask(["sinfo", "--noheader", "--format=%T"]) === "idle");
  }

  #file(name: string): string {
    return join(this.root, name);
  }

  #configuration(cpus: number, control: number, node: number): string {
    const lines = [
      "ClusterName=rlv",
      "SlurmctldHost=localhost(127.0.0.1)",
      `SlurmctldPort=${control}`,
      "SlurmUser=root",
      "SlurmdUser=root",
      "AuthType=auth/munge",
      // A requeued job waits until its credential has expired.
      `AuthInfo=socket=${this.#file("munge/socket")},cred_expire=5`,
      `StateSaveLocation=${this.#file("state")}`,
      `SlurmdSpoolDir=${this.#file("spool")}`,
      `SlurmctldPidFile=${this.#file("slurmctld.pid")}`,
      `SlurmdPidFile=${this.#file("slurmd.pid")}`,
      "ProctrackType=proctrack/linuxproc",
      "TaskPlugin=task/none",
      "MpiDefault=none",
      "SelectType=select/cons_tres",
      "SelectTypeParameters=CR_CPU",
      // Jobs only sleep on the CPUs that this machine does not have.
      "SlurmdParameters=config_overrides",
      "SchedulerType=sched/builtin",
      "SchedulerParameters=batch_sched_delay=0,sched_interval=1",
      "ReturnToService=2",
      "KillWait=20",
      `NodeName=node NodeHostname=localhost NodeAddr=127.0.0.1 Port=${node} CPUs=${cpus} RealMemory=1000 State=UNKNOWN`,
      "PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP",
    ];
    return `${lines.join("\n")}\n`;
  }

  #daemon(name: string, args: readonly string[]): void {
    const log = Bun.file(this.#file(`${name}.log`));
    // Gone with this process, however that ends.
    const argv = ["setpriv", "--pdeathsig", "KILL", Bun.which(name, { PATH })!, ...args];
    this.#daemons.push(
      Bun.spawn(argv, { stdin: "ignore", stdout: log, stderr: log, env: { ...process.env, ...this.env } }),
    );
  }

  #said(daemon: string, word: string): boolean {
    return readFileSync(this.#file(`${daemon}.log`), "utf8").includes(word);
  }

  async #until(what: string, holds: () => boolean): Promise<void> {
    for (const end = performance.now() + PATIENCE_MS; !holds(); await Bun.sleep(100)) {
      const dead = this.#daemons.some((daemon) => daemon.exitCode !== null);
      if (dead || performance.now() > end)
        throw new Error(`it did not come about that ${what}\n${this.logs()}`);
    }
  }

  /** What one of Slurm's programs prints; empty when it fails. */
  ask(argv: readonly string[]): string {
    const asked = Bun.spawnSync([...argv], { env: { ...process.env, ...this.env }, stderr: "ignore" });
    return asked.exitCode === 0 ? asked.stdout.toString().trim() : "";
  }

  /** The last that each daemon said. */
  logs(): string {
    return ["munged", "slurmctld", "slurmd"]
      .map((name) => {
        try {
          const lines = readFileSync(this.#file(`${name}.log`), "utf8")
            .trimEnd()
            .split("\n");
          return `${name}:\n${lines.slice(-15).join("\n")}`;
        } catch {
          return `${name}: not started`;
        }
      })
      .join("\n");
  }

  /** Ends jobs, then daemons, in the order in which they need each other. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#daemons.length === 3) {
      this.ask(["scancel", "--signal=KILL", "--full", "--user", "root"]);
      this.ask(["scancel", "--user", "root"]);
    }
    for (const daemon of this.#daemons.reverse()) {
      daemon.kill("SIGTERM");
      const late = setTimeout(() => daemon.kill("SIGKILL"), 5000);
      await daemon.exited;
      clearTimeout(late);
    }
    rmSync(this.root, { recursive: true, force: true });
  }
}

/** A port of loopback that nobody listens on now. */
function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() =>
        typeof address === "object" && address !== null ? resolve(address.port) : reject(),
      );
    });
  });
}
