// Who leads? Asks once, or follows every change for as long as it runs; one line of JSON for each answer.
//
//     npm ci
//     node leader.js ask 127.0.0.1:50051 demo
//     node leader.js watch 10.0.0.9:50051,10.0.0.10:50051 demo
//
// With CACERT=FILE it speaks TLS, and trusts the authority in that file. There is no build step: the proto files are
// read when it starts.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const DEADLINE_S = 2; // of one question to one server
const HEARTBEAT_S = 1; // how often a server says that nothing has happened
const SILENT_S = 3; // after this long without a message it has hung, whatever TCP thinks of it

// Revisions and tokens have 64 bits, which no number of JavaScript's has: they come as text.
const definition = protoLoader.loadSync("election/v1/election.proto", {
  includeDirs: [path.join(__dirname, "../../proto")],
  longs: String,
  enums: String,
  defaults: true,
});
const { Elections } = grpc.loadPackageDefinition(definition).election.v1;
const { UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, INTERNAL, UNKNOWN, OUT_OF_RANGE, RESOURCE_EXHAUSTED } = grpc.status;
const ELSEWHERE = new Set([UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, INTERNAL, UNKNOWN]); // may differ on another server

const credentials = process.env.CACERT
  ? grpc.credentials.createSsl(fs.readFileSync(process.env.CACERT))
  : grpc.credentials.createInsecure();

// Asks the servers in turn; throws what all of them would answer the same.
async function ask(servers, election) {
  let failed;
  for (const server of servers) {
    const client = new Elections(server, credentials);
    try {
      return await new Promise((resolve, reject) => {
        const deadline = Date.now() + DEADLINE_S * 1000;
        client.getLeader({ election }, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
      });
    } catch (error) {
      if (!ELSEWHERE.has(error.code)) throw error;
      failed = error;
    } finally {
      client.close();
    }
  }
  throw failed;
}

// Every message, without end: when a stream ends or is silent, the next server goes on after the last message.
//
// ELECTED, UPDATED, VACATED: what has happened. HEARTBEAT: nothing has; what was told before is as fresh as it says.
// RESET: what has happened since the last message is not known, and this is who leads now. Terms may have been missed,
// so who acts on each of them has to look for itself what became of those in between.
async function* watch(servers, election) {
  let after; // the revision of the last message; absent: begin with who leads now
  for (let turn = 0; ; turn++) {
    const client = new Elections(servers[turn % servers.length], credentials);
    const call = client.watchLeader({ election, afterRevision: after, heartbeat: { seconds: HEARTBEAT_S } });
    const silence = setTimeout(() => call.cancel(), SILENT_S * 1000);
    let heard = false;
    try {
      for await (const message of call) {
        silence.refresh();
        heard = true;
        after = message.view.revision;
        yield message;
      }
    } catch (error) {
      if (error.code === OUT_OF_RANGE && after !== undefined) {
        after = undefined; // etcd's history was set back: begin anew
      } else if (!ELSEWHERE.has(error.code) && !(heard && error.code === RESOURCE_EXHAUSTED)) {
        throw error;
      }
      console.error(`${servers[turn % servers.length]}: ${error.message}`);
    } finally {
      clearTimeout(silence);
      call.cancel();
      client.close();
    }
    await sleep(100 + Math.random() * 200);
  }
}

// The text form of a token, which resources compare: EPOCH-REVISION.
function tokenText(token) {
  const number = BigInt(token);
  return `${number >> 48n}-${number & ((1n << 48n) - 1n)}`;
}

function show(kind, { view, leader }) {
  const age_s = Number(view.age.seconds) + view.age.nanos / 1e9; // when it was sent; add what has passed since then
  const who = leader && { id: leader.id, address: leader.address, token: tokenText(leader.token) };
  console.log(JSON.stringify({ kind, ...who, revision: view.revision, age_s }));
}

async function main(command, servers = "", election) {
  const addresses = servers.split(",");
  if (command === "ask" && election) {
    const answer = await ask(addresses, election);
    show(answer.leader ? "LEADER" : "NOBODY", answer);
  } else if (command === "watch" && election) {
    for await (const message of watch(addresses, election)) show(message.kind.replace("KIND_", ""), message);
  } else {
    throw new Error("usage: node leader.js ask|watch SERVER,... ELECTION");
  }
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
