{{/*
What the operator may do where it watches. No Secrets, no escalation; of Pods it changes only labels and annotations, to lend
warm pods and to say which one may go first.
*/}}
{{- define "rerank.rules.operator" -}}
- apiGroups: [rerank.dev]
  resources: [rerankers, warmpools]
  verbs: [get, list, watch]
- apiGroups: [rerank.dev]
  resources: [rerankers/status, warmpools/status]
  verbs: [patch]
# Owner references that block deletion: asked for where OwnerReferencesPermissionEnforcement is on (OpenShift).
- apiGroups: [rerank.dev]
  resources: [rerankers/finalizers, warmpools/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments, controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
# Golden sets: the ConfigMap that spec.rollout.goldenSet names, read when it is to be ranked. Only Rerankers say which names
# those are, so they cannot be listed here; without list and watch no other ConfigMap is met or kept.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/* What the gateway may do where it watches: read. */}}
{{- define "rerank.rules.gateway" -}}
- apiGroups: [rerank.dev]
  resources: [rerankers]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- end -}}
