#!/usr/bin/env node
// Starts the program of this platform's package in the place of this process, as nearly as Node can.
"use strict";
const { spawn } = require("node:child_process");
const { constants } = require("node:os");

const name = `@rlv/${process.platform}-${process.arch}`;
let program;
try {
  program = require.resolve(`${name}/bin/rlv`);
} catch {
  process.stderr.write(
    `rlv: error: no program for this machine: ${name} is not installed: install rlv without --omit=optional; ` +
      "there are programs for Linux (glibc) on x64 and arm64 and macOS on arm64\n",
  );
  process.exit(1);
}
const child = spawn(program, process.argv.slice(2), { stdio: "inherit" });
// A terminal sends SIGINT and SIGQUIT to both; the others reach this process alone.
for (const signal of ["SIGINT", "SIGQUIT"]) process.on(signal, () => {});
for (const signal of ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"]) process.on(signal, () => child.kill(signal));
child.on("error", (error) => {
  process.stderr.write(`rlv: error: cannot start (${error.message}): ${program}: install rlv again\n`);
  process.exit(1);
});
child.on("exit", (code, signal) => {
  process.exit(signal === null ? code : 128 + constants.signals[signal]);
});
